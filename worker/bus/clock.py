"""Redis's clock, by ours: the ids of entries tell when they were appended, by Redis's."""

import logging
import time

import anyio
from redis.asyncio import Redis

from worker.bus.connection import BusHealth, patiently
from worker.core import ids

log = logging.getLogger(__name__)

ASK_S = 10.0
"""How often Redis is asked for the time."""

TOLD_APART_S = 1.0
"""Difference between the clocks that somebody should know of."""


class BusClock:
    """Tells the time as Redis does; until Redis was asked, as we do."""

    def __init__(self, redis: Redis, health: BusHealth) -> None:
        self._redis = redis
        self._health = health
        self._told = False
        self._began = time.time() - time.monotonic()
        self.ahead_s = 0.0
        """By how much Redis's clock is ahead of ours."""

    def age_s(self, entry_id: str) -> float:
        """Return how long ago an entry was appended; 0 for one of the future."""
        return max(0.0, self._now + self.ahead_s - ids.milliseconds(entry_id) / 1000)

    @property
    def _now(self) -> float:
        """Our own time, by a clock that nobody sets while we run: ages would jump with it."""
        return self._began + time.monotonic()

    async def run(self) -> None:
        """Keep asking, until cancelled."""
        while True:
            await self.ask()
            await anyio.sleep(ASK_S)

    async def ask(self) -> None:
        """Ask Redis for the time, through its outages."""
        least_s, most_s = await patiently(self._health, self._apart)
        self.ahead_s = min(max(self.ahead_s, least_s), most_s)
        if abs(self.ahead_s) > TOLD_APART_S and not self._told:
            self._told = True
            log.warning("Redis's clock is %+.1f s from this machine's; it is gone by", self.ahead_s)

    async def _apart(self) -> tuple[float, float]:
        """Return between what the truth lies: Redis answered at some moment of our wait."""
        began = self._now
        seconds, microseconds = await self._redis.time()
        told = seconds + microseconds / 1e6
        return told - self._now, told - began
