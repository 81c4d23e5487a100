"""The bus, for commands: reached now, or one line that says why not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.addresses import redacted
from worker.bus.connection import connect, describe
from worker.errors import BusUnavailable
from worker.settings import Settings


@asynccontextmanager
async def open_bus(settings: Settings) -> AsyncIterator[Redis]:
    """Give a client that has been answered once.

    Raises `BusUnavailable` for whatever Redis error comes, then or later.
    """
    try:
        async with connect(settings.redis_url) as redis:
            await redis.ping()
            yield redis
    except RedisError as error:
        where = redacted(settings.redis_url)
        raise BusUnavailable(f"Redis at {where}: {describe(error)}") from error
