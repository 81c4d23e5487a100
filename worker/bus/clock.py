"""Redis's clock, by ours: the ids of entries tell when they were appended, by Redis's."""

import logging
import time

import anyio
from redis.asyncio import Redis

from worker.bus.client.connection import RedisHealth, retry_while_unavailable
from worker.core import stream_ids

log = logging.getLogger(__name__)

SYNC_INTERVAL_S = 10.0
"""How often Redis is asked for the time."""

MOST_BEFORE_S = 3_600.0
"""How long before its session is announced audio may be appended: later it is swept."""

MOST_AHEAD_S = 60.0
"""How far an id may be ahead of Redis's clock, which is asked now and then only."""

EARLIEST_MS = 10**12
"""Ids below this are counters or seconds: milliseconds were that many in 2001."""

SKEW_WARNING_S = 1.0
"""Difference between the clocks that somebody should know of."""


class RedisClock:
    """Tells the time as Redis does; until Redis was asked, as we do."""

    def __init__(self, redis: Redis, health: RedisHealth) -> None:
        self._redis = redis
        self._health = health
        self._logged = False
        self._began = time.time() - time.monotonic()
        self.asked = False
        """Whether Redis was asked yet."""
        self.offset_s = 0.0
        """By how much Redis's clock is ahead of ours."""

    def age_s(self, entry_id: str) -> float:
        """Return how long ago an entry was appended; 0 for one of the future."""
        return max(0.0, self.now - stream_ids.milliseconds(entry_id) / 1000)

    @property
    def now(self) -> float:
        """Unix seconds by Redis's clock."""
        return self._now + self.offset_s

    @property
    def _now(self) -> float:
        """Our own time, by a clock that nobody sets while we run: ages would jump with it."""
        return self._began + time.monotonic()

    async def run(self) -> None:
        """Keep asking, until cancelled."""
        while True:
            await self.sync()
            await anyio.sleep(SYNC_INTERVAL_S)

    async def sync(self) -> None:
        """Ask Redis for the time, through its outages."""
        least_s, most_s = await retry_while_unavailable(self._health, self._offset_bounds)
        self.offset_s = min(max(self.offset_s, least_s), most_s)
        self.asked = True
        if abs(self.offset_s) > SKEW_WARNING_S and not self._logged:
            self._logged = True
            log.warning(
                "Redis's clock is %+.1f s from this machine's; it is gone by", self.offset_s
            )

    async def _offset_bounds(self) -> tuple[float, float]:
        """Return between what the truth lies: Redis answered at some moment of our wait."""
        began = self._now
        seconds, microseconds = await self._redis.time()
        told = seconds + microseconds / 1e6
        return told - self._now, told - began


class EntryAges:
    """Ages of one session's audio entries.

    A producer may append with ids of its own: counters, seconds, times of another clock. Such an
    id says nothing of age, and audio is not late for it.
    """

    def __init__(self, clock: RedisClock, run: str, *, untimed: bool) -> None:
        """`run` is the id of the entry that began the session."""
        self._clock = clock
        began_ms = stream_ids.milliseconds(run)
        if not EARLIEST_MS <= began_ms <= (clock.now + MOST_AHEAD_S) * 1000:
            began_ms = int(clock.now * 1000)  # the session entry has an id of its producer's own
        self._earliest_ms = began_ms - MOST_BEFORE_S * 1000
        self.untimed = untimed
        """Whether the ids of this session are not times."""

    def doubts(self, entry_id: str) -> bool:
        """Say whether this id is the first one that cannot be a time of this session."""
        if self.untimed:
            return False
        ms = stream_ids.milliseconds(entry_id)
        ahead_s = ms / 1000 - self._clock.now
        self.untimed = ms < self._earliest_ms or (self._clock.asked and ahead_s > MOST_AHEAD_S)
        return self.untimed

    def age_s(self, entry_id: str) -> float:
        """Return how long ago an entry was appended; 0 if its id does not say."""
        return 0.0 if self.untimed else self._clock.age_s(entry_id)
