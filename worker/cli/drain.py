"""`turnbus drain`: empty one worker."""

import time
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
import msgspec
from redis.asyncio import Redis

from schemas import Keys
from schemas.turns import WorkerRecord
from worker.bus.drain_requests import request_drain
from worker.bus.inspection import read_workers
from worker.cli.bus import BusCommand
from worker.cli.command import Argument, print_json
from worker.errors import TurnbusError
from worker.settings import Settings
from worker.text import pluralize

_POLL_INTERVAL_S = 0.25
_SILENT_S = 15.0
"""Timeout without a heartbeat, after which the command gives up."""


class Progress(msgspec.Struct, frozen=True):
    """Progress of a drain."""

    worker: str
    sessions: int
    drained: bool


class Drain(BusCommand):
    """Empty one worker, on any host, and wait until it is empty.

    It takes no new sessions and releases those it has, between turns if possible. Its process
    keeps running, idle and unready, because an orchestrator would restart it. Stop it, or restart
    it to let it take sessions again. Exit code 1 if there is no such worker, or if it disappears
    before it is empty.

    examples:
      turnbus drain worker-3
      turnbus drain worker-3 --json
    """

    worker: Annotated[str, Argument("its TURNBUS_WORKER_ID", "WORKER")]

    async def use(self, redis: Redis, settings: Settings) -> None:
        """Request the drain and wait for it."""
        keys = Keys(settings.prefix)
        known = await read_workers(redis, keys)
        if self.worker not in known:
            running = f"running: {', '.join(sorted(known))}" if known else "no worker is running"
            raise TurnbusError(f"there is no worker {self.worker}; {running}")
        consumer = known[self.worker].consumer
        await request_drain(redis, keys, consumer)
        reported = None
        async for record in _heartbeats(redis, keys, self.worker, consumer):
            drained = record.state == "draining" and record.sessions == 0
            progress = Progress(self.worker, record.sessions, drained)
            if progress != reported:
                self._report(progress)
            if drained:
                return
            reported = progress

    def _report(self, progress: Progress) -> None:
        if self.json:
            print_json(progress)
        elif progress.drained:
            print(f"{progress.worker} is empty and can be stopped", flush=True)
        else:
            print(f"{progress.worker}: {pluralize(progress.sessions, 'session')} left", flush=True)


async def _heartbeats(
    redis: Redis, keys: Keys, worker: str, consumer: str
) -> AsyncIterator[WorkerRecord]:
    """Poll a worker's record.

    Raises `TurnbusError` if the process ends or its heartbeats stop.
    """
    heartbeat, seen_at = 0.0, time.monotonic()
    while True:
        record = (await read_workers(redis, keys)).get(worker)
        if record is None or record.consumer != consumer:
            change = "stopped" if record is None else "was restarted"
            raise TurnbusError(f"{worker} {change} before it was empty")
        if record.heartbeat != heartbeat:
            heartbeat, seen_at = record.heartbeat, time.monotonic()
        elif time.monotonic() - seen_at > _SILENT_S:
            silence = f"no heartbeat for {_SILENT_S:g} s"
            raise TurnbusError(f"{worker} sent {silence}; other workers take over")
        yield record
        await anyio.sleep(_POLL_INTERVAL_S)
