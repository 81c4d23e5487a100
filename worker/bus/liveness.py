"""Detection of dead workers: a killed process loses its connections and subscriptions at once.

Every worker subscribes to a channel named after its consumer, and watches the subscriber counts of
the others. A count that was above 0 on the same connection, and is then 0 twice in a row, means a
dead worker, long before its lease expires. After a reconnect no worker counts as dead until it was
seen alive again. Where the counts are not available, the lease alone decides.
"""

import logging
import time
from contextlib import AsyncExitStack
from functools import partial

import anyio
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError

from schemas.keys import RELEASED, Keys
from schemas.turns import WorkerRecord
from worker.bus.client.connection import RedisHealth, describe
from worker.bus.ownership import SessionLeases
from worker.bus.presence import SubscriberCounts, stay_subscribed
from worker.bus.registry import delete_record, read_workers

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.1
RECORDS_INTERVAL_S = 1.0
"""Interval between reads of the workers' records."""

MAX_CLOCK_SKEW_S = 1.5
"""Maximum clock difference between workers. A heartbeat later than that disproves a death."""

STALE_CONSUMER_S = 60.0
"""Minimum idle time after which a consumer that owns nothing is removed, seen alive or not."""


class Liveness:
    """Detects dead workers, and advertises that this worker is alive."""

    def __init__(
        self, redis: Redis, health: RedisHealth, keys: Keys, leases: SessionLeases
    ) -> None:
        self._redis = redis
        self._health = health
        self._keys = keys
        self._leases = leases
        self._seen: set[str] = set()
        self._absent_once: set[str] = set()
        # Unix seconds from which a heartbeat disproves a death, by consumer.
        self._declared_dead: dict[str, float] = {}
        self._ignored: set[str] = set()  # live consumers whose subscription was lost
        self.dead: set[str] = set()
        """Consumers whose process is gone and whose entries may be taken over."""
        self._records: dict[str, WorkerRecord] = {}
        self._peers: set[str] = set()  # the other consumers of the group

    async def advertise(self) -> None:
        """Keep this worker's subscription until cancelled, or until Redis denies it."""
        while True:
            try:
                await stay_subscribed(self._redis, self._keys.alive(self._leases.consumer))
            except NoPermissionError as error:
                log.warning(
                    "crash detection falls back to the lease: grant the Redis user the channels "
                    "&%s (%s)",
                    self._keys.alive("*"),
                    error,
                )
                return
            except (RedisError, OSError) as error:
                self._health.failed(error)
                await anyio.sleep(POLL_INTERVAL_S / 5)  # before other workers poll twice

    async def watch(self) -> None:
        """Watch the other workers until cancelled."""
        while True:
            try:
                async with AsyncExitStack() as connections:
                    counts = SubscriberCounts(self._redis, connections)
                    read_at = 0.0
                    while True:
                        now = time.monotonic()
                        if now - read_at >= RECORDS_INTERVAL_S:
                            read_at = now
                            await self._read_records()
                        await self._count(counts)
                        await anyio.sleep(POLL_INTERVAL_S)
            except (RedisError, OSError) as error:
                log.debug("cannot watch other workers: %s", describe(error))
                await anyio.sleep(RECORDS_INTERVAL_S)
            finally:
                self._seen.clear()
                self._absent_once.clear()

    async def remove_dead(self, owners: set[str]) -> None:
        """Delete the consumers and records of dead workers that own nothing any more.

        The record may be gone already, or belong to a restarted worker, which rewrites it.
        """
        worker_ids = self._worker_ids()
        for owner in owners:
            if not await self._health.retry(partial(self._leases.delete_consumer, owner)):
                continue
            for known in (self.dead, self._peers, self._seen, self._absent_once):
                known.discard(owner)
            if worker_id := worker_ids.get(owner):
                delete = partial(delete_record, self._redis, self._keys, worker_id, owner)
                await self._health.retry(delete)
                self._records.pop(worker_id, None)

    def _worker_ids(self) -> dict[str, str]:
        """Return the worker id of each consumer that has a record."""
        return {record.consumer: worker_id for worker_id, record in self._records.items()}

    async def _read_records(self) -> None:
        self._records = await read_workers(self._redis, self._keys)
        alive = {
            record.consumer
            for record in self._records.values()
            if record.heartbeat > self._declared_dead.get(record.consumer, float("inf"))
        }
        if wrong := self.dead & alive:
            log.warning("%s wrongly declared dead; using their leases from now on", sorted(wrong))
        self._ignored |= self.dead & alive
        self._peers = {*await self._leases.consumers(0)} - {self._leases.consumer, RELEASED}
        self.dead = (self.dead & self._peers) - alive
        for gone in self._declared_dead.keys() - self._peers:
            del self._declared_dead[gone]

    async def _count(self, counts: SubscriberCounts) -> None:
        others = {self._keys.alive(name): name for name in self._peers}
        if not others:
            return
        lost = []
        for channel, count in (await counts.count([*others])).items():
            consumer = others[channel]
            if count:
                self._seen.add(consumer)
                self._absent_once.discard(consumer)
                self.dead.discard(consumer)
            elif consumer in self._absent_once and consumer not in self.dead | self._ignored:
                lost.append(consumer)
            elif consumer in self._seen:
                self._absent_once.add(consumer)
        if not lost:
            return
        worker_ids = self._worker_ids()
        await self._read_records()  # a worker that stopped cleanly has deleted its record
        for consumer in self._peers & {*lost}:
            self.dead.add(consumer)
            if consumer not in self._declared_dead:
                name = worker_ids.get(consumer, consumer)
                log.warning("worker %s is dead; taking over its sessions", name)
            self._declared_dead[consumer] = time.time() + MAX_CLOCK_SKEW_S
