"""Dead letters reach Redis: also a full one."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from schemas.keys import Keys
from tests.support.acl import GuardedRedis, as_user
from tests.support.polling import eventually
from worker.bus.client.connection import RedisHealth, connect
from worker.bus.dead_letters import DeadLetterWriter
from worker.supervisor import Supervisor

KEYS = Keys()


@pytest.fixture
async def full_redis() -> AsyncIterator[Redis]:
    """Return a worker's client of a server that has no memory left."""
    async with (
        GuardedRedis.start(maxmemory=1_000) as server,
        connect(as_user(server.url, "worker")) as redis,
    ):
        with pytest.raises(OutOfMemoryError):
            await redis.xadd(KEYS.dead, {"a": "b"})
        yield redis


def writer(redis: Redis) -> DeadLetterWriter:
    supervisor = Supervisor(Counter())
    return DeadLetterWriter(redis, RedisHealth(), KEYS, supervisor.isolate, Counter())


async def kept(redis: Redis) -> list[dict[bytes, bytes]]:
    rows: Any = await redis.xrange(KEYS.dead)
    return [fields for _, fields in rows]


async def test_full_redis_keeps_a_dead_letter(full_redis: Redis) -> None:
    dead_letters = writer(full_redis)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dead_letters.run)
        fields = {b"session": b"s", b"encoding": b"mp3"}
        dead_letters.put("1-0", KEYS.sessions, "s", "encoding", "no good", fields)
        await eventually(lambda: kept(full_redis), "the dead letter")
        tasks.cancel_scope.cancel()
    assert await kept(full_redis) == [
        {
            b"id": b"1-0",
            b"stream": KEYS.sessions.encode(),
            b"session": b"s",
            b"reason": b"encoding",
            b"detail": b"no good",
            b"size": b"4",
            b"entry": b'{"session":"s","encoding":"mp3"}',
        }
    ]
