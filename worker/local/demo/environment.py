"""Processes of the demo: a Redis server, a local STT server for each provider and two workers."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import anyio
import msgspec

from schemas.keys import GROUP
from schemas.turns import WorkerRecord
from worker.local.harness import QUICK_TAKEOVER, WORKERS, Harness, provider_settings
from worker.local.process import ChildProcess

_STOP_TIMEOUT_S: Final = 10.0  # time to export spans to a slow collector


class DemoEnvironment:
    """All processes of the demo; `open` starts them."""

    def __init__(self, harness: Harness) -> None:
        self.redis = harness.redis
        self.keys = harness.keys
        self.workers: Final[dict[str, ChildProcess]] = {}
        """Worker processes by worker id."""
        self.stt_servers: Final[dict[str, ChildProcess]] = {}
        """Processes of the STT servers by provider."""
        self._harness = harness
        self._urls: dict[str, str] = {}  # of the providers
        self._worker_ids: dict[str, str] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        status: Callable[[str], None],
        environment: Mapping[str, str],
        providers: Sequence[str],
    ) -> AsyncIterator[Self]:
        """Start all processes; end them and remove their files when the block ends.

        `status` receives progress messages. The first of the `providers` is preferred. The
        processes inherit the environment, except for the settings of turnbus. Raises
        MissingExtraError or BusUnavailable as `EmbeddedRedis` does, and TurnbusError if a process
        does not start or stops unexpectedly.
        """
        status("starting Redis ...")
        async with Harness.open(environment) as harness:
            demo = cls(harness)
            for provider in providers:
                status(f"loading the recognizer of {provider} ...")
                starting = harness.start_stt_server("speech", provider=provider)
                demo.stt_servers[provider], demo._urls[provider] = await starting
            status("starting two workers ...")
            settings = {**provider_settings(demo._urls), **QUICK_TAKEOVER}
            for worker_id in WORKERS:
                process = harness.worker(worker_id, settings, stdout=demo._stdout(worker_id))
                demo.workers[worker_id] = await harness.start(process)
            await harness.workers_ready(*demo.workers.values())
            yield demo

    async def owners(self) -> dict[str, str]:
        """Read the owners from Redis: id of a session's entry -> worker id."""
        records: Any = await self.redis.hgetall(self.keys.workers)
        for worker_id, record in records.items():
            consumer = msgspec.json.decode(record, type=WorkerRecord).consumer
            self._worker_ids[consumer] = worker_id.decode()
        pending: Any = await self.redis.xpending_range(self.keys.sessions, GROUP, "-", "+", 100)
        return {
            row["message_id"].decode(): self._worker_ids[consumer]
            for row in pending
            if (consumer := row["consumer"].decode()) in self._worker_ids
        }

    def restarted(self, provider: str) -> AbstractAsyncContextManager[tuple[ChildProcess, str]]:
        """Return a context in which a killed STT server runs again, at the same address."""
        port = urlsplit(self._urls[provider]).port or 0
        return self._harness.stt_server("speech", provider=provider, port=port)

    async def avoids(self, provider: str) -> bool:
        """Return whether the fleet's breaker of a provider is open."""
        return bool(await self.redis.hexists(self.keys.breaker(provider), "probe_at"))

    async def stop(self) -> list[str]:
        """Stop the workers, which export their spans; return the standard output of each."""
        async with anyio.create_task_group() as tasks:
            for process in self.workers.values():
                tasks.start_soon(process.stop, _STOP_TIMEOUT_S)
        return [self._stdout(worker_id).read_text("utf-8", "replace") for worker_id in WORKERS]

    def worker_logs(self) -> str:
        """Return the last log lines of each worker."""
        return "\n".join(f"{each.name}:\n{each.tail()}" for each in self.workers.values())

    def _stdout(self, worker_id: str) -> Path:
        return self._harness.directory / f"{worker_id}.out"
