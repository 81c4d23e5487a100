"""The list of lanes in use, with which consumers find the turn streams."""

from functools import partial

import anyio

from worker.bus.client.connection import RedisHealth, retry_while_unavailable
from worker.bus.ownership import SessionOwnership


class LaneRegistry:
    """Adds a worker's lanes to the list. Sessions do not wait: it may be on another server."""

    def __init__(self, intake: SessionOwnership, health: RedisHealth) -> None:
        self._ownership = intake
        self._health = health
        self._unlisted: set[str] = set()
        self._wake = anyio.Event()

    def add(self, lane: str) -> None:
        """Add a lane as soon as Redis is available. Each claim does so: the list may be lost."""
        self._unlisted.add(lane)
        self._wake.set()

    async def run(self) -> None:
        """Add lanes until cancelled. Safe to restart."""
        while True:
            while self._unlisted:
                lane = next(iter(self._unlisted))
                await retry_while_unavailable(self._health, partial(self._ownership.add_lane, lane))
                self._unlisted.discard(lane)
            self._wake = anyio.Event()
            await self._wake.wait()
