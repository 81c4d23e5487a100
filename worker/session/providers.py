"""The providers of one session: which one serves it, and when it moves to another one.

The session reports what its sockets meet. `worker.core.failover` decides, and the fleet's breakers
say which providers to avoid. A session with one provider never moves.
"""

import logging
from collections.abc import Sequence

from worker.bus.breaker import Breakers
from worker.core.breaker import BreakerState
from worker.core.connection_health import PING_INTERVAL_S
from worker.core.failover import MIN_STAY_S, Decision, Move, Option, Situation, decide
from worker.errors import SttError
from worker.stt.routes import Choice
from worker.telemetry.counters import Counters
from worker.telemetry.logs import SessionName
from worker.telemetry.traces import SessionTrace

log = logging.getLogger(__name__)

MOVE_CHECK_S = 0.2
"""Interval at which a session without a socket checks whether to try another provider."""

MIN_WAIT_S = 0.001
"""Minimum wait: a shorter one may not move the clock, and would be repeated without end."""

_AVOIDED = (BreakerState.OPEN, BreakerState.PROBING)


class SessionProviders:
    """Which provider serves a session. Times are on the monotonic clock."""

    __slots__ = (
        "_breakers",
        "_choices",
        "_current",
        "_failing_since",
        "_failover_s",
        "_fruitless_moves",
        "_moved_at",
        "_name",
        "_probing",
        "_reason",
        "_stats",
        "_stuck",
        "_trace",
    )

    def __init__(
        self,
        name: SessionName,
        choices: Sequence[Choice],
        breakers: Breakers,
        failover_s: float,
        stats: Counters,
        trace: SessionTrace,
        now: float,
        last: str = "",
    ) -> None:
        """`last` is the provider of the session's last socket, empty before the first."""
        self._name = name
        self._choices = list(choices)
        self._breakers = breakers
        self._failover_s = failover_s
        self._stats = stats
        self._trace = trace
        self._current = next((each for each in choices if each.name == last), None)
        self._failing_since: float | None = None
        self._stuck = False
        self._reason = ""  # why the current provider fails
        # When another provider was left because it failed. The owner before did that, if the last
        # provider is not the preferred one.
        self._moved_at = float("-inf") if self._current in (None, choices[0]) else now
        self._fruitless_moves = 0  # since a socket worked
        self._probing = False

    @property
    def current(self) -> Choice:
        """The provider of the current socket, or of the next one."""
        return self._current or self._choices[0]

    @property
    def several(self) -> bool:
        """Whether the session may move."""
        return len(self._choices) > 1

    @property
    def all_failed(self) -> bool:
        """Whether all providers failed one after another since a socket worked."""
        return self._fruitless_moves >= len(self._choices)

    @property
    def silence_timeout_s(self) -> float:
        """Time without an answer to a ping after which a socket is lost."""
        return min(PING_INTERVAL_S, self._failover_s) if self.several else PING_INTERVAL_S

    def connect_timeout_s(self, now: float) -> float:
        """Return how long a connect may take before the session tries another provider.

        If no other works, or all have been tried, the connect itself limits that: it may be slow.
        """
        states = self._breakers.states()
        others = (choice for choice in self._choices if choice is not self._current)
        another = any(states[choice.name] is BreakerState.CLOSED for choice in others)
        if not another or self.all_failed:
            return float("inf")
        since = now if self._failing_since is None else self._failing_since
        return max(self._failover_s - (now - since), self._failover_s / 2)

    def choose(self, now: float, *, inside_turn: bool) -> Choice:
        """Return where to connect now."""
        if self._current is None:
            self._current, self._probing = self._first()
        elif self.several:
            states = self._breakers.states()
            avoided = states[self._current.name] in _AVOIDED and not self._probing
            failing_s = self._failing_s(now)
            if failing_s is None and avoided:
                failing_s = 0.0  # new sockets avoid it
            self._move(now, failing_s, inside_turn=inside_turn)
        if not self._probing:
            self._probing = self._breakers.take_probe(self._current.name)
        return self._current

    def must_move(self, now: float) -> bool:
        """Return whether a session without a socket should try another provider at once.

        Once all have failed, it does not hurry to one that fails for other sessions too.
        """
        failing_s = self._failing_s(now)
        if not self.several or failing_s is None:
            return False
        decision = self._decide(now, failing_s, inside_turn=True)
        if decision.move is not Move.SWITCH:
            return False
        closed = self._breakers.states()[decision.provider] is BreakerState.CLOSED
        return closed or not self.all_failed

    def next_check_s(self, now: float) -> float:
        """Return after which time to call `must_move` again: at the failover time, not later."""
        left_s = self._failover_s - (self._failing_s(now) or 0.0)
        return min(max(left_s, MIN_WAIT_S), MOVE_CHECK_S) if left_s > 0 else MOVE_CHECK_S

    def can_leave(self, now: float) -> bool:
        """Return whether the session would move if its provider is stuck inside the open turn."""
        return self._decide(now, 0.0, inside_turn=True, stuck=True).move is Move.SWITCH

    def check(self, now: float, opened_at: float, *, inside_turn: bool) -> bool:
        """Return whether the session has to leave the socket that it opened at `opened_at`.

        A socket that is left because it brought no event is a failure of its provider.
        """
        if not self.several:
            return False
        # A new socket that follows failures gets time for its first event.
        failing_s = None if self._failing_since is None else now - opened_at
        if failing_s is not None and (failing_s < self._failover_s or not inside_turn):
            failing_s = None
        left, probing = self.current.name, self._probing
        moved = self._move(now, failing_s, inside_turn=inside_turn)
        if moved and failing_s is not None:
            self._count_failure(left, probing=probing)
        return moved

    def works(self) -> None:
        """Record a socket that works: it lasted, or brought an event about audio."""
        self._failing_since, self._stuck, self._fruitless_moves = None, False, 0
        if self._probing:
            self._breakers.probe_ended(self.current.name, succeeded=True)
            self._probing = False
        else:
            self._breakers.succeeded(self.current.name)

    def failed(self, error: SttError, since: float, *, stuck: bool = False) -> None:
        """Record a failed connect or a lost socket; `since` is when it began to fail.

        `stuck` is whether the provider took the open turn's audio and sent nothing.
        """
        if self._failing_since is None:
            self._failing_since = since
        self._stuck = self._stuck or stuck
        self._reason = str(error)
        self._count_failure(self.current.name, probing=self._probing)
        self._probing = False

    def give_up(self, error: SttError, now: float) -> bool:
        """Leave a provider that rejects the session for good; return False if it is the last."""
        if not self.several:
            return False
        self._reason = str(error)
        self._choices.remove(self.current)
        target, probing = self._first()
        self._go_to(target, now, probing=probing)
        return True

    def _failing_s(self, now: float) -> float | None:
        return None if self._failing_since is None else now - self._failing_since

    def _first(self) -> tuple[Choice, bool]:
        """Return the first provider that may be used, and whether the session has to probe it."""
        states = self._breakers.states()
        for choice in self._choices:
            if states[choice.name] is BreakerState.CLOSED:
                return choice, False
            if self._breakers.take_probe(choice.name):
                return choice, True
        return self._choices[0], False

    def _decide(
        self, now: float, failing_s: float | None, *, inside_turn: bool, stuck: bool = False
    ) -> Decision:
        states = self._breakers.states()
        stuck = stuck or self._stuck
        situation = Situation(
            self.current.name, failing_s, stuck, inside_turn, now - self._moved_at
        )
        options = [Option(choice.name, states[choice.name]) for choice in self._choices]
        return decide(situation, options, self._failover_s)

    def _move(self, now: float, failing_s: float | None, *, inside_turn: bool) -> bool:
        """Move to another provider if that is due; return whether the session moved."""
        decision = self._decide(now, failing_s, inside_turn=inside_turn)
        if decision.move is Move.STAY:
            if failing_s is None and not inside_turn and now - self._moved_at >= MIN_STAY_S:
                self._ask_for_probe()
            return False
        target = next(choice for choice in self._choices if choice.name == decision.provider)
        probing = False
        if self._breakers.states()[target.name] is not BreakerState.CLOSED:
            probing = self._breakers.take_probe(target.name)
            if decision.move is Move.RETURN and not probing:
                return False  # another session of this worker was faster
        self._go_to(target, now, probing=probing, returns=decision.move is Move.RETURN)
        return True

    def _ask_for_probe(self) -> None:
        """Ask the fleet for a probe of the providers that are preferred to the current one."""
        for choice in self._choices:
            if choice is self._current:
                return
            if self._breakers.states()[choice.name] is BreakerState.OPEN:
                self._breakers.take_probe(choice.name)

    def _go_to(self, target: Choice, now: float, *, probing: bool, returns: bool = False) -> None:
        if returns:
            log.info("%s: returns to provider %s", self._name, target.name)
            self._moved_at = float("-inf")  # it may be left at once if it fails again
        else:
            log.log(
                logging.DEBUG if self.all_failed else logging.WARNING,
                "%s: provider %s failed (%s); continues at provider %s",
                *(
                    self._name,
                    self.current.name,
                    self._reason or "its breaker is open",
                    target.name,
                ),
            )
            self._stats.failovers[self.current.name] += 1
            self._moved_at = now
            self._fruitless_moves += 1
        self._trace.provider_changed(self.current.name, target.name, self._reason)
        self._current = target
        self._failing_since, self._stuck, self._reason = None, False, ""
        self._probing = probing

    def _count_failure(self, provider: str, *, probing: bool) -> None:
        if probing:
            self._breakers.probe_ended(provider, succeeded=False)
        else:
            self._breakers.failed(provider, str(self._name))
