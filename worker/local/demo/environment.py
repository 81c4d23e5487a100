"""Processes of the demo: a Redis server, the local STT server and two workers."""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

import anyio
import msgspec
from anyio.abc import TaskGroup
from redis.asyncio import Redis

from schemas import Keys
from schemas.keys import GROUP
from schemas.turns import WorkerRecord
from worker.bus.client.connection import connect
from worker.errors import TurnbusError
from worker.local.demo.child import Child
from worker.local.redis import EmbeddedRedis
from worker.settings import API_KEY_VARIABLE, ENV_PREFIX

WORKERS: Final = ("worker-1", "worker-2")

_START_TIMEOUT_S: Final = 60.0  # a cold start reads 300 MB of libraries and weights
_STOP_TIMEOUT_S: Final = 10.0  # time to export spans to a slow collector
_LOOK_S: Final = 0.05

_WORKER_SETTINGS: Final = {
    "ADMIN_ADDR": "",  # two workers cannot share the default port
    "LEASE_MS": "2000",  # the minimum: a killed worker's sessions should move soon
    "REPLAY_SPEED": "2",  # and catch up soon; the local server accepts any pace
}


class DemoEnvironment:
    """All processes of the demo; `open` starts them."""

    def __init__(
        self, redis: Redis, keys: Keys, workers: Mapping[str, Child], directory: Path
    ) -> None:
        self.redis = redis
        self.keys = keys
        self.workers = workers
        self._directory = directory
        self._names: dict[str, str] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls, status: Callable[[str], None], environment: Mapping[str, str]
    ) -> AsyncIterator[Self]:
        """Start all processes; end them and remove their files when the block ends.

        `status` receives progress messages. The processes inherit the environment, except for the
        settings of turnbus. Raises MissingExtraError or BusUnavailable as `EmbeddedRedis` does, and
        TurnbusError if a process does not start or stops unexpectedly.
        """
        async with AsyncExitStack() as stack:
            status("starting Redis ...")
            server = await stack.enter_async_context(EmbeddedRedis.start())
            redis = await stack.enter_async_context(connect(server.url))
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            processes = _Processes(stack, tasks, server.directory, environment)
            status("loading the recognizer ...")
            stt_url = await processes.start_stt_server()
            status("starting two workers ...")
            workers = await processes.start_workers(server.url, stt_url)
            demo = cls(redis, Keys(), workers, server.directory)
            await demo._workers_ready()
            yield demo

    async def owners(self) -> dict[str, str]:
        """Read the owners from Redis: id of a session's entry -> worker id."""
        records: Any = await self.redis.hgetall(self.keys.workers)
        for name, record in records.items():
            consumer = msgspec.json.decode(record, type=WorkerRecord).consumer
            self._names[consumer] = name.decode()
        pending: Any = await self.redis.xpending_range(self.keys.sessions, GROUP, "-", "+", 100)
        return {
            row["message_id"].decode(): self._names[consumer]
            for row in pending
            if (consumer := row["consumer"].decode()) in self._names
        }

    async def stop(self) -> list[str]:
        """Stop the workers, which export their spans; return the standard output of each."""
        async with anyio.create_task_group() as tasks:
            for child in self.workers.values():
                tasks.start_soon(child.stop, _STOP_TIMEOUT_S)
        return [
            _printed(self._directory, worker_id).read_text("utf-8", "replace")
            for worker_id in self.workers
        ]

    def worker_logs(self) -> str:
        """Return the last log lines of each worker."""
        return "\n".join(f"{child.name}:\n{child.tail()}" for child in self.workers.values())

    async def _workers_ready(self) -> None:
        """Wait until each worker has written its record to Redis."""
        with anyio.move_on_after(_START_TIMEOUT_S):
            while True:
                if await self.redis.hlen(self.keys.workers) == len(self.workers):
                    return
                await anyio.sleep(_LOOK_S)
        raise TurnbusError(
            f"the workers did not start; their last log lines:\n{self.worker_logs()}"
        )


class _Processes:
    """Starts processes that end with the stack; an unexpected stop fails the task group."""

    def __init__(
        self,
        stack: AsyncExitStack,
        tasks: TaskGroup,
        directory: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._stack = stack
        self._tasks = tasks
        self._directory = directory
        self._environment = environment

    async def start_stt_server(self) -> str:
        """Start the local STT server and return its URL."""
        command = ["stt-server", "--engine", "speech", "--port", "0"]
        server = await self._start("the STT server", command, {})
        with anyio.move_on_after(_START_TIMEOUT_S):
            while True:
                if url := re.search(r"ws://\S+", server.text()):
                    return url[0]
                await anyio.sleep(_LOOK_S)
        raise TurnbusError(f"the STT server did not start; its last log lines:\n{server.tail()}")

    async def start_workers(self, redis_url: str, stt_url: str) -> dict[str, Child]:
        """Start the workers and return them by their ids."""
        settings = {"REDIS_URL": redis_url, "STT_URL": stt_url, **_WORKER_SETTINGS}
        return {
            worker_id: await self._start(worker_id, ["run"], {**settings, "WORKER_ID": worker_id})
            for worker_id in WORKERS
        }

    async def _start(self, name: str, command: list[str], settings: Mapping[str, str]) -> Child:
        log = self._directory / f"{name.replace(' ', '-')}.log"
        environment = _environment(self._environment, settings)
        printed = _printed(self._directory, name) if name in WORKERS else None
        child = Child.start(name, command, environment, log, printed=printed)
        started = await self._stack.enter_async_context(child)
        self._tasks.start_soon(started.guard)
        return started


def _printed(directory: Path, worker_id: str) -> Path:
    """Return the path of a worker's standard output."""
    return directory / f"{worker_id}.out"


def _environment(given: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with only these turnbus settings.

    The user's telemetry variables (`OTEL_*`) are kept.
    """
    kept = {
        name: value
        for name, value in given.items()
        if not name.startswith(ENV_PREFIX) and name.lower() != "no_proxy"
    }
    overrides = {ENV_PREFIX + name: value for name, value in settings.items()}
    no_proxy = given.get("no_proxy") or given.get("NO_PROXY")
    fixed = {
        API_KEY_VARIABLE: "local",  # the local server accepts any key; the user's key is not used
        "no_proxy": f"127.0.0.1,{no_proxy}" if no_proxy else "127.0.0.1",
        "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime 1.29 and later send telemetry by default
    }
    return {**kept, **overrides, **fixed}
