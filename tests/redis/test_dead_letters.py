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
    fields = {b"session": b"s", b"encoding": b"mp3"}
    await writer(full_redis).write("1-0", "s", "encoding", "no good", fields)
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


async def test_queue_is_written_in_order(full_redis: Redis) -> None:
    dead_letters, audio = writer(full_redis), KEYS.audio("0", "s")
    await dead_letters.wait_written()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dead_letters.run)
        for entry_ids in (("1-0", "2-0"), ("3-0",)):
            for entry_id in entry_ids:
                dead_letters.put(entry_id, audio, "s", "empty", "no audio", {b"note": b"x"})
            await dead_letters.wait_written()
            assert (await kept(full_redis))[-1][b"id"].decode() == entry_ids[-1]
        tasks.cancel_scope.cancel()
    letters = await kept(full_redis)
    assert [each[b"id"] for each in letters] == [b"1-0", b"2-0", b"3-0"]
    assert {each[b"entry"] for each in letters} == {b""}
