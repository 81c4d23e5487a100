"""Drain requests: a key that a worker reads once a second.

A worker that is disconnected or stopped finds the key later, unlike a message on a channel. The key
names the process, so that the next process with the same worker id does not drain.
"""

import anyio
from redis.asyncio import Redis

from schemas.keys import Keys
from worker.bus.client.connection import RedisHealth, retry_while_unavailable

POLL_INTERVAL_S = 1.0
"""Interval between a worker's reads of the key."""

REQUEST_TTL_S = 3_600
"""Time after which an unread request expires."""


async def request_drain(redis: Redis, keys: Keys, consumer: str) -> None:
    """Ask a worker's process to release its sessions and claim no more. Safe to repeat."""
    await redis.set(keys.drain(consumer), "drain", ex=REQUEST_TTL_S)


async def wait_for_drain(redis: Redis, health: RedisHealth, keys: Keys, consumer: str) -> None:
    """Wait until a drain of this process is requested."""
    while True:
        if await retry_while_unavailable(health, lambda: redis.exists(keys.drain(consumer))):
            return
        await anyio.sleep(POLL_INTERVAL_S)
