"""The bus, for commands: reached now, or one line that says why not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.addresses import redacted
from worker.bus.connection import connect, describe
from worker.errors import BusUnavailable, leaves
from worker.settings import Settings


@asynccontextmanager
async def open_bus(settings: Settings) -> AsyncIterator[Redis]:
    """Give a client that has been answered once.

    Raises `BusUnavailable` for whatever Redis error comes, then or later, in a task group too.
    """
    try:
        async with connect(settings.redis_url) as redis:
            await redis.ping()
            yield redis
    except (RedisError, BaseExceptionGroup) as error:
        errors = leaves(error)
        if not all(isinstance(each, RedisError) for each in errors):
            raise
        where = redacted(settings.redis_url)
        fault = describe(errors[0])
        if str(errors[0]).startswith("WRONGTYPE"):
            fault += f" (another program has a key {settings.prefix}:...: set TURNBUS_PREFIX)"
        raise BusUnavailable(f"Redis at {where}: {fault}") from error
