"""Orders to a worker: a key that it looks at once a second.

A key, and no message on a channel: a worker that is cut off, or stands still, finds it later. It
names the process, so that the worker's next one, under the same id, is not bound by it.
"""

import anyio
from redis.asyncio import Redis

from schemas.keys import Keys
from worker.bus.client.connection import RedisHealth, retry_while_unavailable

POLL_INTERVAL_S = 1.0
"""How often a worker looks."""

REQUEST_TTL_S = 3_600
"""How long an order stands that nobody obeys."""


async def request_drain(redis: Redis, keys: Keys, consumer: str) -> None:
    """Tell a worker's process to hand its sessions on and take no new ones. Safe to repeat."""
    await redis.set(keys.drain(consumer), "drain", ex=REQUEST_TTL_S)


async def wait_for_drain(redis: Redis, health: RedisHealth, keys: Keys, consumer: str) -> None:
    """Wait until this process is told to."""
    while True:
        if await retry_while_unavailable(health, lambda: redis.exists(keys.drain(consumer))):
            return
        await anyio.sleep(POLL_INTERVAL_S)
