"""The list of lanes in use, by which consumers find the streams of turns."""

from functools import partial

import anyio

from worker.bus.client.connection import RedisHealth, retry_while_unavailable
from worker.bus.ownership import SessionOwnership


class LaneRegistry:
    """Lists lanes on behalf of one worker. No session waits for it: the list has its own server."""

    def __init__(self, intake: SessionOwnership, health: RedisHealth) -> None:
        self._ownership = intake
        self._health = health
        self._unlisted: set[str] = set()
        self._wake = anyio.Event()

    def add(self, lane: str) -> None:
        """List a lane as soon as Redis takes it; each claim does, for the list may be lost."""
        self._unlisted.add(lane)
        self._wake.set()

    async def run(self) -> None:
        """List until cancelled. Safe to begin again."""
        while True:
            while self._unlisted:
                lane = next(iter(self._unlisted))
                await retry_while_unavailable(self._health, partial(self._ownership.add_lane, lane))
                self._unlisted.discard(lane)
            self._wake = anyio.Event()
            await self._wake.wait()
