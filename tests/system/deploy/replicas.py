"""Stand-ins for a cluster's part: an autoscaler and a Deployment with rolling restarts."""

import math
import random
import signal
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
from anyio.abc import TaskGroup
from redis.asyncio import Redis

from schemas.keys import Keys
from schemas.turns import WorkerRecord
from worker.local.process import ChildProcess

_LOOK_S: Final = 0.2


class Autoscaler:
    """The horizontal autoscaler with an average value as its target, on its caller's clock.

    It scales up at once. It scales down to the largest number wanted within the window, one at a
    time.
    """

    def __init__(
        self, target: int, least: int, most: int, *, window_s: float, period_s: float
    ) -> None:
        self._target = target
        self._bounds = (least, most)
        self._window_s = window_s
        self._period_s = period_s
        self._wanted: deque[tuple[float, int]] = deque()
        self._down_at = -math.inf

    def decide(self, demand: int, current: int, now: float) -> int:
        """Return the desired number of replicas."""
        least, most = self._bounds
        wanted = min(most, max(least, math.ceil(demand / self._target)))
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - self._window_s:
            self._wanted.popleft()
        if wanted >= current:
            return wanted
        steady = max(count for _, count in self._wanted)
        if steady < current and now - self._down_at >= self._period_s:
            self._down_at = now
            return current - 1
        return current


class Replica:
    """One worker process."""

    def __init__(self, life: ChildProcess, generation: int) -> None:
        self.life: Final = life
        self.generation: Final = generation
        self.ready = False
        self.stopping = False


class Replicas:
    """A Deployment: `desired` processes, all of the newest generation; a surge of one."""

    def __init__(
        self,
        redis: Redis,
        environment: Mapping[str, str],
        logs: Path,
        tasks: TaskGroup,
        stack: AsyncExitStack,
        rng: random.Random,
    ) -> None:
        self._redis = redis
        self._environment = environment
        self._logs = logs
        self._tasks = tasks
        self._stack = stack
        self._rng = rng
        self._started = 0
        self.desired = 0
        self.generation = 1
        self.replicas: Final[list[Replica]] = []
        """Running replicas, including those that are stopping."""
        self.asked_to_stop: Final[set[str]] = set()
        """Names of the replicas that were ever asked to stop."""

    @property
    def settled(self) -> bool:
        """Whether exactly the desired replicas run."""
        return len(self.replicas) == self.desired and all(
            each.ready and not each.stopping and each.generation == self.generation
            for each in self.replicas
        )

    async def run(self) -> None:
        """Reconcile until cancelled."""
        while True:
            rows: Any = await self._redis.hgetall(Keys().workers)
            states = {
                name.decode(): msgspec.json.decode(row, type=WorkerRecord).state
                for name, row in rows.items()
            }
            for each in self.replicas:
                each.ready = states.get(each.life.name) == "ready"
            await self._reconcile()
            await anyio.sleep(_LOOK_S)

    async def _reconcile(self) -> None:
        living = [each for each in self.replicas if not each.stopping]
        old = [each for each in living if each.generation < self.generation]
        for _ in range(self.desired + bool(old) - len(living)):
            await self._start()
        ready = sum(each.ready for each in living)
        surplus = (ready if old else len(living)) - self.desired
        new = [each for each in living if each not in old]
        self._rng.shuffle(new)
        for each in [*old, *new][: max(0, surplus)]:
            each.stopping = True
            self.asked_to_stop.add(each.life.name)
            self._tasks.start_soon(self._stop, each)

    async def _start(self) -> None:
        self._started += 1
        name = f"worker-{self._started}"
        environment = {**self._environment, "TURNBUS_WORKER_ID": name}
        log = self._logs / f"{name}.log"
        life = await self._stack.enter_async_context(
            ChildProcess.start(name, ["run"], environment, log)
        )
        self.replicas.append(Replica(life, self.generation))

    async def _stop(self, replica: Replica) -> None:
        replica.life.signal(signal.SIGTERM)
        code = await replica.life.wait()
        # A replica that was still loading its modules had no handler yet, and no session to
        # release.
        assert code == 0 or not replica.life.text(), replica.life.tail()
        self.replicas.remove(replica)
