"""The base of the commands that use the bus, and their connection, without retries."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from redis import exceptions
from redis.asyncio import Redis

from worker.bus.client.connection import connect, describe
from worker.cli.command import Command, Config, run_async
from worker.errors import BusUnavailableError, leaves
from worker.settings import Settings, load
from worker.urls import redacted


class BusCommand(Command, kw_only=True):
    """A command that uses the bus."""

    config: Config = None

    def run(self) -> int:
        """Connect to Redis and use the bus."""
        run_async(partial(self._connect, load(os.environ, self.config)))
        return 0

    async def _connect(self, settings: Settings) -> None:
        async with open_redis(settings) as redis:
            await self.use(redis, settings)

    async def use(self, redis: Redis, settings: Settings) -> None:
        """Do what the command is for."""
        raise NotImplementedError


@asynccontextmanager
async def open_redis(settings: Settings) -> AsyncIterator[Redis]:
    """Yield a connected client.

    Raises `BusUnavailableError` for every Redis error, also later and in a task group.
    """
    answered = False
    try:
        async with connect(settings.redis_url) as redis:
            await redis.ping()
            answered = True
            yield redis
    except (exceptions.RedisError, BaseExceptionGroup) as error:
        errors = leaves(error)
        if not all(isinstance(each, exceptions.RedisError) for each in errors):
            raise
        fault = describe(errors[0])
        advice = _advice(errors[0], settings, answered=answered)
        where = redacted(settings.redis_url)
        raise BusUnavailableError(f"Redis at {where}: {fault}{advice}") from error


def _advice(error: BaseException, settings: Settings, *, answered: bool) -> str:
    """Return advice for an error whose cause is likely in this context."""
    if str(error).startswith("WRONGTYPE"):
        return f" (another program has a key {settings.prefix}:...: set TURNBUS_PREFIX)"
    cut = type(error) is exceptions.ConnectionError and " connecting to " not in str(error)
    if cut and not answered and settings.redis_url.startswith("redis://"):
        return " (if the port requires TLS, use rediss://)"
    return ""
