"""Processes of the demo: a Redis server, the local STT server and two workers."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

import anyio
import msgspec

from schemas.keys import GROUP
from schemas.turns import WorkerRecord
from worker.local.harness import QUICK_TAKEOVER, WORKERS, Harness
from worker.local.process import ChildProcess

_STOP_TIMEOUT_S: Final = 10.0  # time to export spans to a slow collector


class DemoEnvironment:
    """All processes of the demo; `open` starts them."""

    def __init__(self, harness: Harness) -> None:
        self.redis = harness.redis
        self.keys = harness.keys
        self.workers: Final[dict[str, ChildProcess]] = {}
        """Worker processes by worker id."""
        self._harness = harness
        self._worker_ids: dict[str, str] = {}

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
        status("starting Redis ...")
        async with Harness.open(environment) as harness:
            demo = cls(harness)
            status("loading the recognizer ...")
            _, stt_url = await harness.start_stt_server("speech")
            status("starting two workers ...")
            settings = {"STT_URL": stt_url, **QUICK_TAKEOVER}
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
