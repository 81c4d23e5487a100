"""Namesakes: other processes that run under this worker's id.

They share one field of the workers hash, so `turnbus drain` reaches one or the other. A worker that
was started again has none: its dead predecessor writes nothing any more.
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
    """Notices the namesakes of one worker."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._since: float | None = None
        self._logged: set[str] = set()  # consumers

    async def check(self, worker_id: str, ours: WorkerRecord) -> None:
        """Warn, once of each, of who wrote its record in place of ours since we wrote it last.

        To be called each time before `ours` is written.
        """
        if self._since is None:
            self._since = ours.heartbeat
            return  # what is there may be a predecessor's
        found = await self._found(worker_id)
        # An older record is back because Redis lost its latest writes.
        if found is None or found.consumer == ours.consumer or found.heartbeat <= self._since:
            return
        if found.consumer not in self._logged:
            self._logged.add(found.consumer)
            log.warning(
                "another process runs as worker %s, pid %d on %s: `turnbus drain` and %s take the "
                "two for one; give each a TURNBUS_WORKER_ID of its own",
                worker_id,
                found.pid,
                found.host,
                self._keys.workers,
            )

    async def _found(self, worker_id: str) -> WorkerRecord | None:
        """Return the record; None without one, and for what this version does not read."""
        try:
            raw: Any = await self._redis.hget(self._keys.workers, worker_id)
            return decode_record(raw, WorkerRecord) if raw else None
        except msgspec.DecodeError:
            return None
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            return None  # whoever writes there is told
