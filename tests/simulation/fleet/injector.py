"""Applies the faults of a plan: at their times, or when what they wait for occurs.

A fault may wait for a state of a session, then for a script call of its worker.
"""

from collections import Counter, defaultdict
from typing import Final

import anyio
from anyio.abc import TaskGroup

from tests.simulation.fleet.faults import BEGIN, OF_A_WORKER, Repair
from tests.simulation.fleet.fleet import Fleet
from tests.simulation.fleet.history import ScriptRun
from tests.simulation.fleet.plan import Fault
from tests.simulation.fleet.workers import Slot, states_of

TRIGGER_TIMEOUT_S: Final = 5.0
"""Time after which a fault strikes without the script call that it waits for."""

STATE_TIMEOUT_S: Final = 8.0
"""Time after which a fault stops waiting for a state."""

STATE_POLL_S: Final = 0.02
"""Interval at which states are examined. A state may last a tenth of a second."""


class FaultInjector:
    """Applies every fault, and repairs it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._armed: list[_Armed] = []
        self.applied: Final[Counter[str]] = Counter()
        """Number of applied faults by kind; the others found no target."""
        self.states: Final[defaultdict[str, Counter[str]]] = defaultdict(Counter)
        """Number of sessions that a kind of fault met, by state."""

    async def run(self) -> None:
        """Apply the faults; return when the last is repaired."""
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for fault in sorted(self._fleet.plan.faults, key=lambda each: each.at_s):
                await anyio.sleep_until(began + fault.at_s)
                tasks.start_soon(self._strike, fault, tasks)

    def on_script(self, run: ScriptRun) -> None:
        """Let the faults strike that wait for this call. Its reply is not sent yet."""
        if not self._armed:
            return
        caller = self._fleet.caller(run)
        for armed in [*self._armed]:
            if armed.fault.after == run.name and caller in (None, armed.slot):
                self._armed.remove(armed)
                armed.repair = self._begin(armed.fault, armed.slot)
                armed.struck.set()

    async def _strike(self, fault: Fault, tasks: TaskGroup) -> None:
        slot = self._fleet.slots[fault.target % len(self._fleet.slots)]
        if fault.in_state:
            await self._wait_for_state(fault, slot)
        if fault.after:
            armed = _Armed(fault, slot)
            self._armed.append(armed)
            with anyio.move_on_after(TRIGGER_TIMEOUT_S):
                await armed.struck.wait()
            if armed in self._armed:
                self._armed.remove(armed)
                armed.repair = self._begin(fault, slot)
            repair = armed.repair
        else:
            repair = self._begin(fault, slot)
        if repair is not None:
            await anyio.sleep(max(0.0, fault.seconds))
            await repair()

    async def _wait_for_state(self, fault: Fault, slot: Slot) -> None:
        with anyio.move_on_after(STATE_TIMEOUT_S):
            while fault.in_state not in self._states(fault, slot):
                await anyio.sleep(STATE_POLL_S)

    def _states(self, fault: Fault, slot: Slot) -> list[str]:
        """Return the states of all sessions that a fault meets."""
        slots = [slot] if fault.kind in OF_A_WORKER else self._fleet.slots
        return [
            state for each in slots for session in each.sessions for state in states_of(session)
        ]

    def _begin(self, fault: Fault, slot: Slot) -> Repair | None:
        """Begin a fault, and count the states that it meets."""
        states = self._states(fault, slot)
        repair = BEGIN[fault.kind](self._fleet, fault, slot)
        if repair is not None:
            self.applied[fault.kind] += 1
            self.states[fault.kind].update(states)
            self._fleet.note(f"fault {fault.kind} at {slot.name} for {fault.seconds:g} s")
        return repair


class _Armed:
    """A fault that waits for a script call."""

    def __init__(self, fault: Fault, slot: Slot) -> None:
        self.fault = fault
        self.slot = slot
        self.struck = anyio.Event()
        self.repair: Repair | None = None
