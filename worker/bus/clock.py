"""The Redis clock, derived from the local clock. Entry ids hold the Redis time of their append."""

import logging
import time

import anyio
from redis.asyncio import Redis

from worker.bus.client.connection import RedisHealth
from worker.core import stream_ids

log = logging.getLogger(__name__)

SYNC_INTERVAL_S = 10.0
"""Interval between requests of the Redis time."""

MAX_LEAD_S = 3_600.0
"""Maximum time from audio to the announcement of its session: older audio is swept."""

MAX_AHEAD_S = 60.0
"""Maximum time that an id may be ahead of the Redis clock, which is read only at intervals."""

EARLIEST_MS = 10**12
"""Minimum id that is a time in milliseconds, of 2001. Lower ids are counters or seconds."""

SKEW_WARNING_S = 1.0
"""Minimum difference between the clocks that is logged."""


class RedisClock:
    """The Redis clock; the local clock until the first reply."""

    def __init__(self, redis: Redis, health: RedisHealth) -> None:
        self._redis = redis
        self._health = health
        self._logged = False
        self._began = time.time() - time.monotonic()
        self.asked = False
        """Whether Redis has reported its time."""
        self.offset_s = 0.0
        """Seconds by which the Redis clock is ahead of the local clock."""

    def age_s(self, entry_id: str) -> float:
        """Return how long ago an entry was appended; 0 if its id is in the future."""
        return max(0.0, self.now - stream_ids.milliseconds(entry_id) / 1000)

    @property
    def now(self) -> float:
        """Unix seconds of the Redis clock."""
        return self._now + self.offset_s

    def at(self, now: float) -> float:
        """Return the Unix seconds of the Redis clock at the local monotonic time `now`."""
        return self._began + now + self.offset_s

    @property
    def _now(self) -> float:
        """Unix seconds by the local monotonic clock: ages do not jump when the clock is set."""
        return self._began + time.monotonic()

    async def run(self) -> None:
        """Read the Redis time at intervals until cancelled."""
        while True:
            await self.sync()
            await anyio.sleep(SYNC_INTERVAL_S)

    async def sync(self) -> None:
        """Read the Redis time, retrying during outages."""
        least_s, most_s = await self._health.retry(self._offset_bounds)
        self.offset_s = min(max(self.offset_s, least_s), most_s)
        self.asked = True
        if abs(self.offset_s) > SKEW_WARNING_S and not self._logged:
            self._logged = True
            log.warning(
                "Redis clock differs from the local clock by %+.1f s; using the Redis clock",
                self.offset_s,
            )

    async def _offset_bounds(self) -> tuple[float, float]:
        """Return the bounds of the offset: Redis read its clock between request and reply."""
        began = self._now
        seconds, microseconds = await self._redis.time()
        redis_now = seconds + microseconds / 1e6
        return redis_now - self._now, redis_now - began


class EntryAges:
    """Ages of one session's audio entries.

    A producer may append with explicit ids: counters, seconds, times of another clock. Such an id
    gives no age, and its audio is never late.
    """

    def __init__(self, clock: RedisClock, run: str, *, untimed: bool) -> None:
        """`run` is the id of the entry that began the session."""
        self._clock = clock
        began_ms = stream_ids.milliseconds(run)
        if not EARLIEST_MS <= began_ms <= (clock.now + MAX_AHEAD_S) * 1000:
            began_ms = int(clock.now * 1000)  # the producer chose the id of the session entry
        self._earliest_ms = began_ms - MAX_LEAD_S * 1000
        self.untimed = untimed
        """Whether the entry ids of this session are not times."""

    def observe(self, entry_id: str) -> float:
        """Return the age of an entry that was just read; set `untimed` if its id is not a time."""
        if self.untimed:
            return 0.0
        ms = stream_ids.milliseconds(entry_id)
        age_s = self._clock.now - ms / 1000
        if ms < self._earliest_ms or (self._clock.asked and age_s < -MAX_AHEAD_S):
            self.untimed = True
            return 0.0
        return max(0.0, age_s)

    def age_at(self, entry_id: bytes, now: float) -> float | None:
        """Return the age of an entry at monotonic time `now`; None if `observe` has to decide."""
        if self.untimed:
            return None
        ms = int(entry_id.partition(b"-")[0])
        age_s = self._clock.at(now) - ms / 1000
        if ms < self._earliest_ms or age_s < -MAX_AHEAD_S:
            return None
        return max(0.0, age_s)

    def age_s(self, entry_id: str) -> float:
        """Return how long ago an entry was appended; 0 if its id is not a time."""
        return 0.0 if self.untimed else self._clock.age_s(entry_id)
