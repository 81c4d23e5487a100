"""The nemesis: breaks everything around the sessions, by a table, a seed and a clock."""

import random
from collections import Counter
from typing import Final

import anyio

from worker.local.chaos.faults import FAULTS
from worker.local.chaos.plan import Plan
from worker.local.chaos.rig import Rig
from worker.local.chaos.target import Target


class Nemesis:
    """Applies faults until it is told to stop; what it broke it mends."""

    def __init__(self, plan: Plan, rig: Rig) -> None:
        self._plan = plan
        self._rng = random.Random(f"{plan.seed} nemesis")  # noqa: S311 - a schedule
        self._stopped = False
        self.target: Final = Target(plan, rig, self._rng)
        self.applied: Final[Counter[str]] = Counter()

    def stop(self) -> None:
        """Begin no more faults; `run` returns once those under way are mended."""
        self._stopped = True

    async def run(self) -> None:
        """Apply faults, several at a time, each at random times."""
        names = list(self._plan.faults or FAULTS)
        weights = [FAULTS[name].weight for name in names]
        async with anyio.create_task_group() as tasks:
            while not self._stopped:
                await anyio.sleep(self._rng.expovariate(1 / self._plan.every_s))
                (name,) = self._rng.choices(names, weights)
                if not self._stopped:
                    tasks.start_soon(self._apply, name)

    async def _apply(self, name: str) -> None:
        if await FAULTS[name].act(self.target):
            self.applied[name] += 1
