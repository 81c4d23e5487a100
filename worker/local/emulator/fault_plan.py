"""The faults in force, and what they do to one connection; no I/O.

Faults that are set apply to connections that are open, too, from the next message on.
"""

from operator import itemgetter
from random import Random
from typing import Final, TypeVar

import msgspec

from worker.local.emulator.engines.base import EngineEvent
from worker.local.emulator.fault_specs import parse_fault
from worker.local.emulator.faults import (
    ConnectionEnd,
    Duplicate,
    Fault,
    Habit,
    HttpRefusal,
    LateConnected,
    Moment,
    NoTurnEnd,
    PaceLimit,
    Shrink,
    SlowRead,
)
from worker.local.emulator.rate_limits import RateLimit, Throttle

H = TypeVar("H", bound=Habit)


class ActiveFault:
    """A fault in force."""

    def __init__(self, fault: Fault, seed: int) -> None:
        self.fault: Final = fault
        self.applied = 0
        """How many connections it took."""
        self._seed = seed if fault.seed is None else fault.seed

    @property
    def spent(self) -> bool:
        """Whether it has taken as many connections as it may."""
        return self.fault.count is not None and self.applied >= self.fault.count

    def draw(self, number: int) -> bool:
        """Tell whether connection `number` is among those it may take.

        The same for the same seed, whatever the other connections did meanwhile.
        """
        if self.fault.probability == 1:
            return True
        lot = Random(f"{self._seed} {self.fault.spec} {number}")  # noqa: S311 - guards nothing
        return lot.random() < self.fault.probability


class FaultSet:
    """A server's faults."""

    def __init__(self) -> None:
        self.standing: tuple[ActiveFault, ...] = ()
        self._upgrades = 0
        self._sockets = 0

    def set(self, *specs: str, seed: int = 0) -> None:
        """Put these faults in force instead of those that are, as `fault_specs` reads them.

        Connections are numbered for `seed` from here. Raises SettingsError and changes nothing
        if a spec cannot be read.
        """
        self.standing = tuple(ActiveFault(parse_fault(spec), seed) for spec in specs)
        self._upgrades = self._sockets = 0

    def clear(self) -> None:
        """Let everything go well from here on."""
        self.set()

    def at_upgrade(self) -> ConnectionEnd | HttpRefusal | None:
        """Take an upgrade that would be granted, and tell what becomes of it instead."""
        self._upgrades += 1
        plan = ConnectionFaults(self, self._upgrades)
        return plan.refusal() or plan.at_moment("handshake")

    def plan(self) -> "ConnectionFaults":
        """Take a connection that was upgraded."""
        self._sockets += 1
        return ConnectionFaults(self, self._sockets)


class ConnectionFaults:
    """What the faults do to one connection. False while there are none."""

    def __init__(self, faults: FaultSet, number: int) -> None:
        self.applied: list[str] = []
        """The specs of the faults that took it, in order."""
        self._faults = faults
        self._number = number
        self._drawn: dict[ActiveFault, bool] = {}
        self._taken: set[ActiveFault] = set()
        self._guards: dict[ActiveFault, RateLimit] = {}
        self._throttles: dict[ActiveFault, Throttle] = {}

    def __bool__(self) -> bool:
        return bool(self._faults.standing)

    def refusal(self) -> HttpRefusal | None:
        """Tell how the upgrade is answered instead."""
        for standing in self._faults.standing:
            action = standing.fault.action
            if isinstance(action, HttpRefusal) and self._takes(standing):
                return action
        return None

    def at_moment(self, moment: Moment) -> ConnectionEnd | None:
        """Tell what happens at this moment."""
        for standing in self._faults.standing:
            action = standing.fault.action
            if (
                standing.fault.at == moment
                and isinstance(action, ConnectionEnd)
                and self._takes(standing)
            ):
                return action
        return None

    def strike_within(self, heard: int, size: int) -> tuple[int, ConnectionEnd] | None:
        """Tell what happens within the next `size` bytes of audio, and after how many of them."""
        for at, standing in self._by_bytes():
            action = standing.fault.action
            if at <= heard + size and isinstance(action, ConnectionEnd) and self._takes(standing):
                return max(at - heard, 0), action
        return None

    def greeting(self) -> LateConnected:
        """Tell how late `connected` is."""
        if (found := self._habit(LateConnected)) is None:
            return LateConnected(0)
        standing, late = found
        self._take(standing)
        return late

    def read_delay_s(self, size: int, now: float) -> float:
        """Tell how long the next `size` bytes of audio take to read."""
        if (found := self._habit(SlowRead)) is None:
            return 0
        standing, slow = found
        self._take(standing)
        throttle = self._throttles.setdefault(standing, Throttle(slow.bytes_per_s))
        return throttle.delay_s(size, now)

    def too_fast(self, audio_s: float, now: float) -> PaceLimit | None:
        """Tell the limit that the next `audio_s` seconds of audio break."""
        if (found := self._habit(PaceLimit)) is None:
            return None
        standing, limit = found
        guard = self._guards.setdefault(standing, RateLimit(limit.speed, limit.burst_s))
        if guard.allows(audio_s, now):
            return None
        self._take(standing)
        return limit

    def garble(self, event: EngineEvent) -> list[EngineEvent]:
        """Tell what is sent in place of an event."""
        events = [event]
        if event.kind == "turn.end" and self._has(NoTurnEnd):
            return []
        if event.kind == "turn.update" and self._has(Shrink):
            shorter = (event.transcript or "").rpartition(" ")[0]
            events.append(msgspec.structs.replace(event, transcript=shorter))
        if self._has(Duplicate):
            events = [each for each in events for _ in range(2)]
        return events

    def _by_bytes(self) -> list[tuple[int, ActiveFault]]:
        found = [
            (standing.fault.at, standing)
            for standing in self._faults.standing
            if isinstance(standing.fault.at, int)
        ]
        return sorted(found, key=itemgetter(0))

    def _takes(self, standing: ActiveFault) -> bool:
        """Take the connection if the fault may, once."""
        if standing in self._taken or not self._may_take(standing):
            return False
        self._take(standing)
        return True

    def _has(self, kind: type[Habit]) -> bool:
        if (found := self._habit(kind)) is None:
            return False
        self._take(found[0])
        return True

    def _habit(self, kind: type[H]) -> tuple[ActiveFault, H] | None:
        for standing in self._faults.standing:
            action = standing.fault.action
            if isinstance(action, kind) and (standing in self._taken or self._may_take(standing)):
                return standing, action
        return None

    def _may_take(self, standing: ActiveFault) -> bool:
        if standing not in self._drawn:
            self._drawn[standing] = standing.draw(self._number)
        return self._drawn[standing] and not standing.spent

    def _take(self, standing: ActiveFault) -> None:
        if standing not in self._taken:
            self._taken.add(standing)
            standing.applied += 1
            self.applied.append(standing.fault.spec)
