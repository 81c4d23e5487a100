"""The registry of workers: their records, the lanes that they use, and requests to drain.

Nothing depends on it for the transcription of a session. Its keys may be on another server of a
cluster than the sessions, so no session waits for them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas.keys import Keys
from schemas.turns import WorkerRecord, decode_record
from worker.bus import scripts
from worker.bus.client.connection import RedisHealth

log = logging.getLogger(__name__)

DRAIN_POLL_INTERVAL_S = 1.0
"""Interval between a worker's reads of its drain request."""

DRAIN_REQUEST_TTL_S = 3_600
"""Time after which an unread request expires."""


async def read_workers(redis: Redis, keys: Keys) -> dict[str, WorkerRecord]:
    """Return the records of all workers by worker id, without invalid records."""
    rows: Any = await redis.hgetall(keys.workers)
    records = {}
    for worker_id, raw in rows.items():
        try:
            records[worker_id.decode()] = decode_record(raw, WorkerRecord)
        except (UnicodeDecodeError, msgspec.DecodeError):
            continue  # a record of another version or program
    return records


async def delete_record(redis: Redis, keys: Keys, worker_id: str, consumer: str) -> None:
    """Delete a worker's record if it belongs to this consumer."""
    with _wrong_type_logged(keys.workers):
        await scripts.delete_record(
            redis, workers_key=keys.workers, worker_id=worker_id, consumer=consumer
        )


async def request_drain(redis: Redis, keys: Keys, consumer: str) -> None:
    """Ask a worker's process to release its sessions and claim no more. Safe to repeat.

    The key names the process, so that the next process with the same worker id does not drain.
    """
    await redis.set(keys.drain(consumer), "drain", ex=DRAIN_REQUEST_TTL_S)


async def wait_for_drain(redis: Redis, health: RedisHealth, keys: Keys, consumer: str) -> None:
    """Wait until a drain of this process is requested, also while it was disconnected."""
    key = keys.drain(consumer)
    while not await health.retry(lambda: redis.exists(key)):  # noqa: ASYNC110 - polls Redis
        await anyio.sleep(DRAIN_POLL_INTERVAL_S)


class WorkerRegistry:
    """Writes the record of one worker, and adds its lanes to the list of lanes in use."""

    def __init__(self, redis: Redis, health: RedisHealth, keys: Keys) -> None:
        self._redis = redis
        self._health = health
        self._keys = keys
        self._since: float | None = None  # time of this worker's first record
        self._duplicates: set[str] = set()  # consumers
        self._unlisted: set[str] = set()
        self._wake = anyio.Event()

    async def register(self, worker_id: str, record: WorkerRecord) -> None:
        """Write this worker's record; log a warning once if another process has the same id.

        Both share one field of the hash, so `turnbus drain` reaches only one of them. A restarted
        worker is not a duplicate: its dead predecessor writes nothing any more.
        """
        if self._since is None:
            self._since = record.heartbeat  # the record that exists may be a predecessor's
        else:
            await self._warn_of_duplicates(worker_id, record.consumer, self._since)
        await self._write(self._keys.workers, "HSET", worker_id, msgspec.json.encode(record))

    async def _warn_of_duplicates(self, worker_id: str, consumer: str, since: float) -> None:
        try:
            raw: Any = await self._redis.hget(self._keys.workers, worker_id)
            found = decode_record(raw or b"", WorkerRecord)
        except msgspec.DecodeError:
            return  # there is none, or this version cannot decode it
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            return  # the write logs a warning
        # An older record appears again if Redis lost its latest writes.
        if found.heartbeat <= since or found.consumer in {consumer, *self._duplicates}:
            return
        self._duplicates.add(found.consumer)
        log.warning(
            "another process runs as worker %s, pid %d on %s: `turnbus drain` and %s cannot "
            "distinguish them; give each its own TURNBUS_WORKER_ID",
            *(worker_id, found.pid, found.host, self._keys.workers),
        )

    def add_lane(self, lane: str) -> None:
        """Add a lane as soon as Redis is available. Each claim does so: the list may be lost."""
        self._unlisted.add(lane)
        self._wake.set()

    async def list_lanes(self) -> None:
        """Add lanes to the list until cancelled. Safe to restart."""
        while True:
            while self._unlisted:
                lane = next(iter(self._unlisted))
                add = partial(self._write, self._keys.lanes, "SADD", lane)
                await self._health.retry(add)
                self._unlisted.discard(lane)
            self._wake = anyio.Event()
            await self._wake.wait()

    async def _write(self, key: str, command: str, *values: str | bytes) -> None:
        """Write to a key, also if Redis is full."""
        with _wrong_type_logged(key):
            await scripts.write(self._redis, key=key, command=command, values=values)


@contextmanager
def _wrong_type_logged(key: str) -> Iterator[None]:
    """Log a warning if a key has another type; the registry is optional."""
    try:
        yield
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        log.warning("%s has an unexpected type and is not written: %s", key, error)
