"""Duplicate workers: other processes with the same worker id.

They share one field of the workers hash, so `turnbus drain` reaches only one of them. A restarted
worker is not a duplicate: its dead predecessor writes nothing any more.
"""

import logging
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas.keys import Keys
from schemas.turns import WorkerRecord
from worker.bus.records import decode_record

log = logging.getLogger(__name__)


class DuplicateWorkerCheck:
    """Detects duplicates of one worker."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._since: float | None = None
        self._logged: set[str] = set()  # consumers

    async def check(self, worker_id: str, own: WorkerRecord) -> None:
        """Log a warning, once per process, if another process has overwritten this one's record.

        Call it each time before `own` is written.
        """
        if self._since is None:
            self._since = own.heartbeat
            return  # the record may be a predecessor's
        found = await self._found(worker_id)
        # An older record appears again if Redis lost its latest writes.
        if found is None or found.consumer == own.consumer or found.heartbeat <= self._since:
            return
        if found.consumer not in self._logged:
            self._logged.add(found.consumer)
            log.warning(
                "another process runs as worker %s, pid %d on %s: `turnbus drain` and %s cannot "
                "distinguish them; give each its own TURNBUS_WORKER_ID",
                worker_id,
                found.pid,
                found.host,
                self._keys.workers,
            )

    async def _found(self, worker_id: str) -> WorkerRecord | None:
        """Return the record; None if there is none, or if this version cannot decode it."""
        try:
            raw: Any = await self._redis.hget(self._keys.workers, worker_id)
            return decode_record(raw, WorkerRecord) if raw else None
        except msgspec.DecodeError:
            return None
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            return None  # the write logs a warning
