"""The gate: no more open STT sockets in the whole fleet than the plan allows.

A session joins with the time it first wanted a socket and keeps that place through reconnects,
takeovers and handovers; it leaves when it parks or ends. The place belongs to the session, not to
its worker, so that a crash leaks no permit.
"""

import anyio
from redis.asyncio import Redis

from worker.bus import scripts
from worker.bus.connection import BusHealth, patiently

ASK_AGAIN_S = 0.2
"""How often a session that waits asks whether its turn has come."""


class Gate:
    """The fleet's permits; `permits` 0 is no limit."""

    def __init__(self, redis: Redis, health: BusHealth, key: str, permits: int) -> None:
        self._redis = redis
        self._health = health
        self._key = key
        self._permits = permits

    async def enter(self, member: str) -> bool:
        """Wait for a permit; return whether there was a wait."""
        waited = False
        while self._permits and not await patiently(self._health, lambda: self._ask(member)):
            waited = True
            await anyio.sleep(ASK_AGAIN_S)
        return waited

    async def leave(self, member: str) -> None:
        """Give the place up. Safe to repeat."""
        if self._permits:
            await patiently(self._health, lambda: self._redis.zrem(self._key, member))

    async def _ask(self, member: str) -> bool:
        return bool(await scripts.GATE(self._redis, [self._key], [member, self._permits]))
