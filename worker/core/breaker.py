"""The breaker of one provider, as one worker knows it: whether new connects should avoid it.

The fleet shares a breaker on Redis (`worker/bus/breaker.py`). Every second a worker reports what
its sockets met, and adopts the fleet's state. Between two exchanges, and while Redis is away, the
same rules apply to what this worker alone knows. Times are seconds on the monotonic clock.
"""

import random
from enum import Enum
from typing import NamedTuple

MAX_FAILURES = 5
"""Number of failures that open a breaker, without a success between them.

A false opening costs a second connect to another provider; a late one costs each new session the
time of its failover. So the number is small. Single failures of a healthy provider never follow
each other: in a large fleet sockets succeed in between, and a small fleet has too few in a window.
"""

MAX_SESSION_FAILURES = MAX_FAILURES - 1
"""Number of these that one session may add: a session that is broken itself opens no breaker."""

WINDOW_S = 10.0
"""Time within which the failures must occur: the longest connect that fails (`OPEN_TIMEOUT_S`), so
that two sessions that time out again and again still count together."""

FIRST_PROBE_S = 2.0
"""Time from the opening to the first probe."""

MAX_PROBE_S = 30.0
"""Maximum time between two probes; it doubles with each that fails."""

PROBE_LEASE_S = 15.0
"""Time after which a probe without a result counts as gone: a connect takes 10 s at most."""

SILENCE_S = 5.0
"""Time without a reply of Redis after which a worker allows probes by its own schedule."""

JITTER = 0.2
"""Part by which the time to a probe varies, so that fleets do not probe in step."""

_RNG = random.Random()  # noqa: S311 - spreads load, guards nothing


class BreakerState(Enum):
    """What a breaker means for a session that wants a socket."""

    CLOSED = "closed"
    """The provider may be used."""
    OPEN = "open"
    """The provider should be avoided."""
    PROBE_DUE = "probe due"
    """One session of this worker may try the provider: `take_probe`."""
    PROBING = "probing"
    """One session of the fleet tries the provider."""


class Failure(NamedTuple):
    """One failed connect, or one lost socket."""

    at: float
    session: str


class Report(NamedTuple):
    """What a worker reports to the fleet."""

    successes: int
    """Count of successes so far."""
    succeeded: bool
    """Whether a socket worked since the last report, before the failures."""
    failures: tuple[Failure, ...]
    probe: str
    """How this worker's probe ended: `ok`, `failed`, or empty if none ended."""
    wants_probe: bool
    """Whether a session asked for a probe."""


class Breaker:
    """One provider's breaker in one worker."""

    __slots__ = (
        "_asked",
        "_failures",
        "_opened",
        "_others_probe_until",
        "_own_probe_until",
        "_probe",
        "_probe_at",
        "_reported_successes",
        "_rng",
        "_successes",
        "_wait_s",
    )

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or _RNG
        self._opened = False
        self._failures: list[Failure] = []  # that the fleet does not know yet
        self._successes = 0
        self._reported_successes = 0
        self._wait_s = FIRST_PROBE_S
        self._probe_at = 0.0
        self._own_probe_until = 0.0
        self._others_probe_until = 0.0
        self._probe = ""
        self._asked = False

    def state(self, now: float) -> BreakerState:
        """Return the state at a time."""
        if not self._opened:
            return BreakerState.CLOSED
        if now < self._own_probe_until or now < self._others_probe_until:
            return BreakerState.PROBING
        return BreakerState.PROBE_DUE if now >= self._probe_at else BreakerState.OPEN

    def failed(self, session: str, now: float) -> None:
        """Record a failed connect or a lost socket of a session, which was no probe."""
        self._forget_old(now)
        own = sum(failure.session == session for failure in self._failures)
        if own < MAX_SESSION_FAILURES and len(self._failures) < MAX_FAILURES:
            self._failures.append(Failure(now, session))
        if not self._opened and len(self._failures) >= MAX_FAILURES:
            self._open(now)

    def succeeded(self) -> None:
        """Record a socket that works. Only a probe's success closes an open breaker."""
        self._failures.clear()
        self._successes += 1

    def take_probe(self, now: float) -> bool:
        """Return whether the caller may, and now must, try the provider.

        The caller reports the result with `probe_ended`. A caller that may not try has shown that a
        probe is wanted: the worker asks the fleet for one.
        """
        state = self.state(now)
        if state is not BreakerState.PROBE_DUE:
            self._asked |= state is BreakerState.OPEN
            return False
        self._own_probe_until = now + PROBE_LEASE_S
        return True

    def probe_ended(self, now: float, *, succeeded: bool) -> None:
        """Record how a probe ended."""
        self._own_probe_until = 0.0
        self._probe = "ok" if succeeded else "failed"
        if succeeded:
            self._close()
        elif self._opened:
            self._wait_s = min(2 * self._wait_s, MAX_PROBE_S)
            self._probe_at = now + self._wait_s * self.next_jitter()

    def report(self, now: float) -> Report:
        """Return what the fleet does not know yet. `adopt` removes it; a failed call does not."""
        self._forget_old(now)
        succeeded = self._successes != self._reported_successes
        return Report(
            self._successes, succeeded, tuple(self._failures), self._probe, wants_probe=self._asked
        )

    def adopt(self, report: Report, state: str, now: float, *, granted: bool) -> None:
        """Adopt the fleet's state, which Redis returned for a report.

        `state` is `closed`, `open` or `probing`; `granted` is whether this worker has the probe.
        """
        self._reported_successes = report.successes
        self._failures = [each for each in self._failures if each not in report.failures]
        if report.probe == self._probe:
            self._probe = ""
        self._asked = False
        if self._probe:
            return  # it ended meanwhile: the reply is older
        if state == "closed":
            if len(self._failures) < MAX_FAILURES:
                self._close()
            return
        if not self._opened:
            self._open(now)
        self._others_probe_until = 0.0
        if granted:
            self._probe_at = now
        else:
            self._probe_at = now + SILENCE_S
            if state == "probing":
                self._others_probe_until = now + PROBE_LEASE_S

    def next_jitter(self) -> float:
        """Return a factor for the time to the next probe."""
        return self._rng.uniform(1 - JITTER, 1 + JITTER)

    def _open(self, now: float) -> None:
        self._opened = True
        self._wait_s = FIRST_PROBE_S
        self._own_probe_until = self._others_probe_until = 0.0
        self._probe_at = now + self._wait_s * self.next_jitter()

    def _close(self) -> None:
        self._opened = False
        self._wait_s = FIRST_PROBE_S
        self._own_probe_until = self._others_probe_until = 0.0

    def _forget_old(self, now: float) -> None:
        if self._failures and now - self._failures[0].at > WINDOW_S:
            self._failures = [each for each in self._failures if now - each.at <= WINDOW_S]
