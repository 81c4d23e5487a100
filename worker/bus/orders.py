"""Orders to a worker: a key that it looks at once a second.

A key, and no message on a channel: a worker that is cut off, or stands still, finds it later. It
names the process, so that the worker's next one, under the same id, is not bound by it.
"""

import anyio
from redis.asyncio import Redis

from schemas.keys import Keys
from worker.bus.connection import BusHealth, patiently

LOOK_S = 1.0
"""How often a worker looks."""

STANDS_S = 3_600
"""How long an order stands that nobody obeys."""


async def order_drain(redis: Redis, keys: Keys, consumer: str) -> None:
    """Tell a worker's process to hand its sessions on and take no new ones. Safe to repeat."""
    await redis.set(keys.drain(consumer), "drain", ex=STANDS_S)


async def until_drain(redis: Redis, health: BusHealth, keys: Keys, consumer: str) -> None:
    """Wait until this process is told to."""
    while True:
        if await patiently(health, lambda: redis.exists(keys.drain(consumer))):
            return
        await anyio.sleep(LOOK_S)
