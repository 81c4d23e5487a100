"""Processes of one run: Redis, the STT server and one worker."""

import os
import re
import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

import anyio
from anyio.abc import TaskGroup
from redis.asyncio import Redis

from schemas import Keys
from worker.bench.otlp_sink import open_sink
from worker.bus.client.connection import connect
from worker.errors import TurnbusError
from worker.local.demo.child import Child
from worker.local.redis import EmbeddedRedis, free_port
from worker.settings import API_KEY_VARIABLE, ENV_PREFIX

_START_TIMEOUT_S: Final = 60.0
_LOOK_S: Final = 0.02
FILES_BESIDE_SOCKETS: Final = 200
_STT_SERVER: Final = ["stt-server", "--engine", "script", "--port", "0"]


class Process(Child):
    """A process of the benchmark."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def url(self) -> str:
        """Return the URL that an STT server prints when it listens.

        Raises TurnbusError if it does not start.
        """
        with anyio.move_on_after(_START_TIMEOUT_S):
            while True:
                if url := re.search(r"ws://\S+", self.text()):
                    return url[0]
                await anyio.sleep(_LOOK_S)
        raise TurnbusError(f"{self.name} did not start; its last log lines:\n{self.tail()}")


@asynccontextmanager
async def open_stt_server(logs: Path) -> AsyncIterator[Process]:
    """Run only an STT server until the block ends.

    Raises TurnbusError if it stops unexpectedly.
    """
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        yield await _start(stack, tasks, logs, "stt-server", _STT_SERVER, {})


class Harness:
    """All processes of a run; `open` starts them."""

    def __init__(
        self,
        redis: Redis,
        server: EmbeddedRedis,
        stt_server: Process,
        worker: Process,
        admin_port: int,
    ) -> None:
        self.redis = redis
        self.admin_port = admin_port
        """Port of the worker's metrics, on this machine."""
        self.redis_port = server.port
        self.keys = Keys()
        self._worker = worker
        self.pids: Final = {
            "worker": worker.pid,
            "redis": server.pid,
            "stt_server": stt_server.pid,
            "bench": os.getpid(),
        }
        """Process ids by the names the report uses."""

    @classmethod
    @asynccontextmanager
    async def open(cls, sessions: int, *, traced: bool = False) -> AsyncIterator[Self]:
        """Start all processes; end them and remove their files when the block ends.

        With `traced` the worker exports its spans. Raises LocalPartMissing or BusUnavailable as
        `EmbeddedRedis` does, TurnbusError if a process does not start or stops unexpectedly.
        """
        allow_open_files(sessions + FILES_BESIDE_SOCKETS)
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(EmbeddedRedis.start())
            redis = await stack.enter_async_context(connect(server.url))
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            logs = server.directory
            stt_server = await _start(stack, tasks, logs, "stt-server", _STT_SERVER, {})
            admin_port = free_port()
            settings = {
                "REDIS_URL": server.url,
                "STT_URL": await stt_server.url(),
                "WORKER_ID": "bench",
                "MAX_SESSIONS": str(sessions),
                "ADMIN_ADDR": f"127.0.0.1:{admin_port}",
            }
            spans = stack.enter_context(open_sink()).environment if traced else {}
            worker = await _start(stack, tasks, logs, "worker", ["run"], settings, spans)
            rig = cls(redis, server, stt_server, worker, admin_port)
            await rig._worker_ready()
            yield rig

    def worker_log(self) -> str:
        """Return the last log lines of the worker."""
        return self._worker.tail()

    async def _worker_ready(self) -> None:
        """Wait until the worker has written its record to Redis."""
        with anyio.move_on_after(_START_TIMEOUT_S):
            while True:
                if await self.redis.hlen(self.keys.workers):
                    return
                await anyio.sleep(_LOOK_S)
        raise TurnbusError(f"the worker did not start; its last log lines:\n{self.worker_log()}")


async def _start(
    stack: AsyncExitStack,
    tasks: TaskGroup,
    logs: Path,
    name: str,
    command: list[str],
    settings: Mapping[str, str],
    more: Mapping[str, str] = MappingProxyType({}),
) -> Process:
    """Start a process that ends with the stack; an unexpected stop fails the task group."""
    part = Process.start(name, command, {**environment(settings), **more}, logs / f"{name}.log")
    started = await stack.enter_async_context(part)
    tasks.start_soon(started.guard)
    return started


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with only these worker settings.

    Telemetry variables (`OTEL_*`) are removed.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((ENV_PREFIX, "OTEL_"))
    }
    prefixed = {ENV_PREFIX + name: value for name, value in settings.items()}
    # The local server accepts any key; the user's key is not used.
    return {**kept, **prefixed, API_KEY_VARIABLE: "local"}


def allow_open_files(count: int) -> None:
    """Raise the limit of open files of this process and its children to at least `count`.

    Raises TurnbusError if the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise TurnbusError(f"{count} open files are needed and {hard} allowed: ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
