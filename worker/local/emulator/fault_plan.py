"""Active faults, and their effects on one connection; no I/O.

New faults also apply to open connections, from the next message on.
"""

from collections.abc import Iterator
from operator import itemgetter
from random import Random
from typing import Final, TypeVar

import msgspec

from worker.local.emulator.engines.base import EngineEvent
from worker.local.emulator.faults import (
    ConnectionEnd,
    Cut,
    Duplicate,
    Fault,
    Habit,
    HttpRefusal,
    IgnoredCommand,
    LateConnected,
    LostMessages,
    Moment,
    NoTurnEnd,
    PaceLimit,
    Reorder,
    Sent,
    Shrink,
    SlowRead,
    WindowJitter,
    parse_fault,
)
from worker.local.emulator.turn_info import TurnInfo

H = TypeVar("H", bound=Habit)


class RateLimit:
    """Token bucket: allows audio at `speed` times real time, with bursts of `burst_s` seconds."""

    def __init__(self, speed: float, burst_s: float) -> None:
        self._speed = speed
        self._burst_s = burst_s
        self._left_s = burst_s
        self._at: float | None = None

    def allows(self, audio_s: float, now: float) -> bool:
        """Return whether a message is within the limit; a rejected message is not counted."""
        if self._at is not None:
            self._left_s = min(self._burst_s, self._left_s + (now - self._at) * self._speed)
        self._at = now
        if audio_s > self._left_s:
            return False
        self._left_s -= audio_s
        return True


class Throttle:
    """Limits reading to `per_s` bytes a second."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._free_at = 0.0

    def delay_s(self, size: int, now: float) -> float:
        """Count `size` bytes; return the delay until they are read."""
        self._free_at = max(self._free_at, now) + size / self._per_s
        return self._free_at - now

    def backlog_s(self, size: int, now: float) -> float:
        """Count `size` bytes; return the delay until the bytes before them are read."""
        waits_s = max(0.0, self._free_at - now)
        self.delay_s(size, now)
        return waits_s


class ActiveFault:
    """A fault that is active on the server."""

    def __init__(self, fault: Fault, seed: int) -> None:
        self.fault: Final = fault
        self.applied = 0
        """Number of connections the fault was applied to."""
        self._seed = seed if fault.seed is None else fault.seed

    @property
    def spent(self) -> bool:
        """Whether the fault has reached its `count`."""
        return self.fault.count is not None and self.applied >= self.fault.count

    def draw(self, number: int) -> bool:
        """Return whether the random draw selects connection `number`.

        The result depends only on the seed, the spec and the number.
        """
        if self.fault.probability == 1:
            return True
        draw = Random(f"{self._seed} {self.fault.spec} {number}")  # noqa: S311 - not for security
        return draw.random() < self.fault.probability


class FaultSet:
    """All active faults of a server."""

    def __init__(self) -> None:
        self.standing: tuple[ActiveFault, ...] = ()
        self._upgrades = 0
        self._sockets = 0

    def set(self, *specs: str, seed: int = 0) -> None:
        """Replace the active faults; see `faults.GRAMMAR` for the specs.

        Connection numbers for `seed` restart at 1. Raises SettingsError and changes nothing if a
        spec is invalid.
        """
        self.standing = tuple(ActiveFault(parse_fault(spec), seed) for spec in specs)
        self._upgrades = self._sockets = 0

    def clear(self) -> None:
        """Remove all faults."""
        self.set()

    def at_upgrade(self) -> ConnectionEnd | HttpRefusal | None:
        """Count a valid upgrade; return the fault to apply to it, if any."""
        self._upgrades += 1
        plan = ConnectionFaults(self, self._upgrades)
        return plan.refusal() or plan.at_moment("handshake")

    def plan(self) -> "ConnectionFaults":
        """Count an upgraded connection; return its faults."""
        self._sockets += 1
        return ConnectionFaults(self, self._sockets)


class ConnectionFaults:
    """Faults of one connection. Falsy while no fault is active."""

    def __init__(self, faults: FaultSet, number: int) -> None:
        self.applied: list[str] = []
        """Specs of the faults applied to the connection, in order."""
        self._faults = faults
        self._number = number
        self._drawn: dict[ActiveFault, bool] = {}
        self._used: set[ActiveFault] = set()
        self._limits: dict[ActiveFault, RateLimit] = {}
        self._throttles: dict[ActiveFault, Throttle] = {}
        self._rng = Random(number)  # noqa: S311 - not for security
        self._unended = 0  # turns whose end was not sent, so that they seem to be one

    def __bool__(self) -> bool:
        return bool(self._faults.standing)

    def refusal(self) -> HttpRefusal | None:
        """Return the HTTP refusal to answer the upgrade with, if any."""
        for standing in self._unused():
            if isinstance(action := standing.fault.action, HttpRefusal):
                self._apply(standing)
                return action
        return None

    def at_moment(self, moment: Moment) -> ConnectionEnd | None:
        """Return the fault that applies at this moment, if any."""
        for standing in self._unused():
            action = standing.fault.action
            if standing.fault.at == moment and isinstance(action, ConnectionEnd):
                self._apply(standing)
                return action
        return None

    def fault_within(self, received: int, size: int) -> tuple[int, ConnectionEnd] | None:
        """Return the fault due within the next `size` bytes of audio, and its byte offset."""
        due = [
            (at, standing, action)
            for standing in self._unused()
            if isinstance(at := standing.fault.at, int) and at <= received + size
            if isinstance(action := standing.fault.action, ConnectionEnd)
        ]
        if not due:
            return None
        at, standing, action = min(due, key=itemgetter(0))
        self._apply(standing)
        return max(at - received, 0), action

    def cut_within(self, sent: int, size: int) -> tuple[int, ConnectionEnd] | None:
        """Return the cut due within the next `size` bytes sent, and its byte offset."""
        for standing in self._unused():
            at, action = standing.fault.at, standing.fault.action
            if isinstance(at, Sent) and at.size <= sent + size and isinstance(action, Cut):
                self._apply(standing)
                return max(at.size - sent, 0), action
        return None

    def greeting(self) -> LateConnected:
        """Return the delay of `connected`."""
        if (found := self._habit(LateConnected)) is None:
            return LateConnected(0)
        standing, late = found
        self._apply(standing)
        return late

    def read_delay_s(self, size: int, now: float) -> float:
        """Return the delay for reading the next `size` bytes of audio."""
        if (found := self._habit(SlowRead)) is None:
            return 0
        standing, slow = found
        self._apply(standing)
        throttle = self._throttles.setdefault(standing, Throttle(slow.bytes_per_s))
        return throttle.delay_s(size, now)

    def too_fast(self, audio_s: float, now: float) -> PaceLimit | None:
        """Return the pace limit that the next `audio_s` seconds of audio exceed, if any."""
        if (found := self._habit(PaceLimit)) is None:
            return None
        standing, limit = found
        guard = self._limits.setdefault(standing, RateLimit(limit.speed, limit.burst_s))
        if guard.allows(audio_s, now):
            return None
        self._apply(standing)
        return limit

    def ignores(self, text: str) -> bool:
        """Return whether a text message has no effect."""
        found = self._habit(IgnoredCommand)
        if found is None or _type_of(text) != found[1].type:
            return False
        self._apply(found[0])
        return True

    def distort(self, event: EngineEvent) -> list[EngineEvent]:
        """Return the events to send in place of `event`."""
        if event.kind == "turn.end" and self._has(NoTurnEnd):
            self._unended += 1
            return []
        if self._unended and event.kind == "progress":
            return []  # the reply that no turn is open
        if isinstance(event, TurnInfo):
            event = msgspec.structs.replace(event, turn_index=event.turn_index - self._unended)
        if (lost := self._habit(LostMessages)) and event.kind in lost[1].kinds:
            self._apply(lost[0])
            return []
        events: list[EngineEvent] = [event]
        if event.kind == "turn.update" and event.transcript and self._has(Shrink):
            shorter = event.transcript.rpartition(" ")[0]
            words = event.words[:-1]
            events.append(msgspec.structs.replace(event, transcript=shorter, words=words))
        if isinstance(event, TurnInfo) and (found := self._habit(WindowJitter)):
            self._apply(found[0])
            events = [self._jittered(each, found[1].most_s) for each in events]
        if self._has(Duplicate):
            events = [each for each in events for _ in range(2)]
        return events

    def holds(self, event: EngineEvent) -> bool:
        """Return whether `event` is sent after the event that follows it."""
        return event.kind == "turn.update" and self._has(Reorder)

    def _jittered(self, event: EngineEvent, most_s: float) -> EngineEvent:
        if not isinstance(event, TurnInfo):
            return event
        moved_s = event.window_start_s + self._rng.uniform(-most_s, most_s)
        start_s = min(max(moved_s, 0.0), event.decoded_s)
        return msgspec.structs.replace(event, window_start_s=start_s)

    def _has(self, kind: type[Habit]) -> bool:
        if (found := self._habit(kind)) is None:
            return False
        self._apply(found[0])
        return True

    def _habit(self, kind: type[H]) -> tuple[ActiveFault, H] | None:
        for standing in self._faults.standing:
            action = standing.fault.action
            if isinstance(action, kind) and (standing in self._used or self._may_apply(standing)):
                return standing, action
        return None

    def _unused(self) -> Iterator[ActiveFault]:
        """Yield the faults that may apply and have not yet: they occur once."""
        for standing in self._faults.standing:
            if standing not in self._used and self._may_apply(standing):
                yield standing

    def _may_apply(self, standing: ActiveFault) -> bool:
        if standing not in self._drawn:
            self._drawn[standing] = standing.draw(self._number)
        return self._drawn[standing] and not standing.spent

    def _apply(self, standing: ActiveFault) -> None:
        if standing not in self._used:
            self._used.add(standing)
            standing.applied += 1
            self.applied.append(standing.fault.spec)


class _Typed(msgspec.Struct):
    type: str = ""


def _type_of(text: str) -> str:
    """Return the type of a text message; empty if it is not readable."""
    try:
        return msgspec.json.decode(text, type=_Typed).type
    except (msgspec.DecodeError, RecursionError):
        return ""
