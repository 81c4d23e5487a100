"""The nemesis: injects faults by a schedule."""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Final

import anyio

from tests.chaos.faults import FAULTS
from tests.chaos.harness import ChaosHarness
from tests.chaos.plan import Plan
from tests.chaos.schedule import ScheduledFault
from tests.chaos.target import FaultTarget

_TRY_AGAIN_S: Final = 0.1


class Nemesis:
    """Applies every fault of the schedule as soon as it finds a target, and repairs it."""

    def __init__(self, strikes: Sequence[ScheduledFault], plan: Plan, rig: ChaosHarness) -> None:
        self._over = anyio.Event()
        self.schedule: Final = tuple(strikes)
        self.target: Final = FaultTarget(plan, rig)
        self.applied: Final[Counter[str]] = Counter()

    def stop(self) -> None:
        """Cancel the faults that are not due or have no target, because all producers are done."""
        self._over.set()

    async def run(self) -> None:
        """Apply the faults when they are due; return when the last is repaired."""
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for strike in self.schedule:
                with anyio.move_on_at(began + strike.at_s):
                    await self._over.wait()
                    return
                tasks.start_soon(self._apply, strike)

    async def _apply(self, strike: ScheduledFault) -> None:
        rng = Random(strike.seed)
        while not await FAULTS[strike.fault].act(self.target, rng):
            if self._over.is_set():
                return
            await anyio.sleep(_TRY_AGAIN_S)
        self.applied[strike.fault] += 1
