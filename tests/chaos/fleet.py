"""Fleet of worker processes that are killed, stopped, paused and restarted."""

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
"""Timeout after SIGTERM: the worker's limit, and a margin for a busy machine."""

_RESTART_S: Final = 1.0
"""Delay before a worker that ended unexpectedly is restarted."""


class WorkerProcess(Child):
    """One worker process."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        if self.running:
            self._process.send_signal(number)

    async def over(self) -> int:
        """Wait until the process ends; return the exit code, negative for a signal."""
        return await self._process.wait()


class Slot:
    """A worker id of the fleet, with its proxy to Redis and its successive processes."""

    def __init__(self, name: str, redis: Proxy, environment: Mapping[str, str]) -> None:
        self.name: Final = name
        self.redis: Final = redis
        self.environment: Final = {**environment, "TURNBUS_WORKER_ID": name}
        self.lives: Final[list[WorkerProcess]] = []
        """Running processes; two while one replaces the other."""
        self.started = 0


class Fleet:
    """Starts and ends workers; records every unexpected end."""

    def __init__(self, slots: list[Slot], logs: Path, tasks: TaskGroup, module: str) -> None:
        self.slots: Final = slots
        self.faults: Final[list[str]] = []
        """Errors of workers: an unexpected exit, a wrong exit code."""
        self._logs = logs
        self._tasks = tasks
        self._module = module
        self._expected: dict[WorkerProcess, tuple[int, ...]] = {}

    async def start(self, slot: Slot) -> WorkerProcess:
        """Start a process in a slot, in addition to a running one."""
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
                self.faults.append(
                    f"{life.name} ended with {code}; its last log lines:\n{life.tail()}"
                )
            if not expected:
                await anyio.sleep(_RESTART_S)
                await self.start(slot)

    async def kill(self, life: WorkerProcess) -> None:
        """Send SIGKILL and wait until the process ends."""
        if life.running:
            self._expected[life] = (-signal.SIGKILL,)
            life.signal(signal.SIGKILL)
            await life.over()

    async def stop(self, life: WorkerProcess, *, twice: bool = False) -> None:
        """Send SIGTERM and wait until the process ends; kill it after a timeout."""
        if not life.running:
            return
        # A process that is still loading its modules has no sessions and no signal handler.
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
        """Send SIGSTOP, and SIGCONT at the end of the block."""
        life.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            life.signal(signal.SIGCONT)
