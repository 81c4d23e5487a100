"""The fleet: worker processes that are killed, stopped and paused, and started again."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskGroup

from tests.chaos.proxy import Proxy
from worker.local.demo.child import Child

DRAIN_S: Final = 5.0
_STOP_BUDGET_S: Final = DRAIN_S + 10.0 + 5.0
"""After SIGTERM; what the worker promises, and as much again as a busy machine may cost."""

_RESTART_S: Final = 1.0
"""Before a worker that ended by itself is started again."""


class WorkerProcess(Child):
    """One worker process."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.running:
            self._process.send_signal(number)

    async def over(self) -> int:
        """Wait for its end; return the exit code, negative for a signal."""
        return await self._process.wait()


class Slot:
    """A place in the fleet: one worker id, one way to Redis, one process after another."""

    def __init__(self, name: str, redis: Proxy, environment: Mapping[str, str]) -> None:
        self.name: Final = name
        self.redis: Final = redis
        self.environment: Final = {**environment, "TURNBUS_WORKER_ID": name}
        self.lives: Final[list[WorkerProcess]] = []
        """Those that run; two while one takes over from the other."""
        self.started = 0


class Fleet:
    """Starts and ends workers; notes every end that was not ours."""

    def __init__(self, slots: list[Slot], logs: Path, tasks: TaskGroup, module: str) -> None:
        self.slots: Final = slots
        self.faults: Final[list[str]] = []
        """What workers did that they must not: an exit of their own, a wrong exit code."""
        self._logs = logs
        self._tasks = tasks
        self._module = module
        self._expected: dict[WorkerProcess, tuple[int, ...]] = {}

    async def start(self, slot: Slot) -> WorkerProcess:
        """Start a process in a slot, beside one that may run there."""
        slot.started += 1
        name = f"{slot.name}.{slot.started}"
        stack = AsyncExitStack()
        life = await stack.enter_async_context(
            WorkerProcess.start(
                name, ["run"], slot.environment, self._logs / f"{name}.log", module=self._module
            )
        )
        slot.lives.append(life)
        self._tasks.start_soon(self._see_through, slot, life, stack)
        return life

    async def _see_through(self, slot: Slot, life: WorkerProcess, stack: AsyncExitStack) -> None:
        async with stack:
            code = await life.over()
            slot.lives.remove(life)
            expected = self._expected.pop(life, ())
            if code not in expected:
                self.faults.append(f"{life.name} ended with {code}; it wrote:\n{life.tail()}")
            if not expected:
                await anyio.sleep(_RESTART_S)
                await self.start(slot)

    async def kill(self, life: WorkerProcess) -> None:
        """SIGKILL; return once it is gone."""
        if life.running:
            self._expected[life] = (-signal.SIGKILL,)
            life.signal(signal.SIGKILL)
            await life.over()

    async def stop(self, life: WorkerProcess, *, twice: bool = False) -> None:
        """SIGTERM; return once it is gone. One that outstays its budget is killed, and noted."""
        if not life.running:
            return
        # What is still loading its modules has nothing to hand on, and no handler yet.
        self._expected[life] = (0,) if life.text() else (0, -signal.SIGTERM)
        life.signal(signal.SIGTERM)
        if twice:
            await anyio.sleep(0.2)
            life.signal(signal.SIGTERM)
        with anyio.move_on_after(_STOP_BUDGET_S) as budget:
            await life.over()
        if budget.cancelled_caught:
            life.signal(signal.SIGKILL)
            await life.over()

    @contextmanager
    def paused(self, life: WorkerProcess) -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end of the block."""
        life.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            life.signal(signal.SIGCONT)
