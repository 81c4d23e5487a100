"""`turnbus drain`: empty one worker."""

import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from functools import partial

import anyio
import msgspec
from redis.asyncio import Redis

from schemas import Keys
from schemas.turns import WorkerRecord
from worker.bus.drain_requests import request_drain
from worker.bus.inspection import read_workers
from worker.cli.command import Subparsers, add_command, add_config, read_settings, run_async
from worker.cli.redis import open_redis
from worker.errors import NotFoundError
from worker.plurals import counted
from worker.settings import Settings

_LOOK_S = 0.25
_SILENT_S = 15.0
"""Without a heartbeat, after which nothing is waited for any more."""


class Progress(msgspec.Struct, frozen=True):
    """How far it is."""

    worker: str
    sessions: int
    drained: bool


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "drain",
        run,
        about="Empty one worker, on whatever host, and wait until it is empty: it takes no new\n"
        "sessions and hands on those it has, between turns if it can. Its process stays, idle and\n"
        "unready: whatever keeps workers running would start one that ended anew. Stop it, or\n"
        "start it again to have it take sessions. Exit code 1 if there is no such worker, or it\n"
        "is gone before it is empty.",
        examples="turnbus drain worker-3\nturnbus drain worker-3 --json",
    )
    parser.add_argument("worker", metavar="WORKER", help="its TURNBUS_WORKER_ID")
    parser.add_argument("--json", action="store_true", help="print progress as JSON lines")
    add_config(parser)


def run(arguments: Namespace) -> int:
    """Order, and wait."""

    def report(progress: Progress) -> None:
        if arguments.json:
            print(msgspec.json.encode(progress).decode(), flush=True)
        elif progress.drained:
            print(f"{progress.worker} is empty; it may be stopped", flush=True)
        else:
            print(f"{progress.worker}: {counted(progress.sessions, 'session')} left", flush=True)

    run_async(partial(_drain, read_settings(arguments), arguments.worker, report))
    return 0


async def _drain(settings: Settings, worker: str, report: Callable[[Progress], None]) -> None:
    keys = Keys(settings.prefix)
    async with open_redis(settings) as redis:
        known = await read_workers(redis, keys)
        if worker not in known:
            others = f"there are {', '.join(sorted(known))}" if known else "nor any other"
            raise NotFoundError(f"there is no worker {worker}; {others}")
        consumer = known[worker].consumer
        await request_drain(redis, keys, consumer)
        told = None
        async for record in _heartbeats(redis, keys, worker, consumer):
            drained = record.state == "draining" and record.sessions == 0
            progress = Progress(worker, record.sessions, drained)
            if progress != told:
                report(progress)
            if drained:
                return
            told = progress


async def _heartbeats(
    redis: Redis, keys: Keys, worker: str, consumer: str
) -> AsyncIterator[WorkerRecord]:
    """Yield a worker's record again and again.

    Raises `NotThere` once the process is gone, or says nothing any more.
    """
    heartbeat, heard_at = 0.0, time.monotonic()
    while True:
        record = (await read_workers(redis, keys)).get(worker)
        if record is None or record.consumer != consumer:
            fate = "left" if record is None else "was started again"
            raise NotFoundError(f"{worker} {fate} before it was seen empty")
        if record.heartbeat != heartbeat:
            heartbeat, heard_at = record.heartbeat, time.monotonic()
        elif time.monotonic() - heard_at > _SILENT_S:
            raise NotFoundError(f"{worker} has said nothing for {_SILENT_S:g} s; others take over")
        yield record
        await anyio.sleep(_LOOK_S)
