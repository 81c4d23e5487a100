"""The producer during failures of the bus."""

from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from schemas import Encoding, Keys, SessionEntry, decode_audio
from tests.support.acl import GuardedRedis, as_user
from worker.bus.client.connection import connect
from worker.errors import TurnbusError
from worker.producer import Producer

SESSION = SessionEntry(session="s", encoding=Encoding.PCM_S16LE, sample_rate=16_000)


async def test_vanished_stream_is_not_recreated(
    redis: Redis, as_producer: Redis, bus_prefix: str
) -> None:
    keys = Keys(bus_prefix)
    producer = Producer(as_producer, keys, SESSION)
    await producer.append(bytes(3_200))
    await redis.delete(keys.audio("0", "s"))
    with pytest.raises(TurnbusError, match="the audio of session s is gone from Redis"):
        await producer.append(bytes(3_200))
    assert producer.seconds == pytest.approx(0.1)


async def test_ending_an_ended_session_succeeds(
    redis: Redis, as_producer: Redis, bus_prefix: str, expected_leftovers: list[str]
) -> None:
    expected_leftovers.append("{0}:audio:s")
    await redis.set(Keys(bus_prefix).audio("0", "s"), b"ended")
    await Producer(as_producer, Keys(bus_prefix), SESSION).end()


async def test_producer_retries_during_an_outage() -> None:
    keys = Keys()
    async with (
        GuardedRedis.start(append_only=True) as server,
        connect(server.url) as redis,
        connect(as_user(server.url, "producer")) as as_producer,
    ):
        producer = Producer(as_producer, keys, SESSION)
        await producer.announce()
        await producer.append(b"\1" * 3_200)
        await server.kill()
        async with anyio.create_task_group() as group:
            group.start_soon(producer.append, b"\2" * 3_200)
            await anyio.sleep(0.1)
            await server.restart()
        await producer.end()
        found: Any = await redis.xrange(keys.audio("0", "s"))
        entries = [decode_audio(fields) for _, fields in found]
        assert [entry.audio[:1] for entry in entries] == [b"\1", b"\2", b""]
        assert [entry.seq for entry in entries] == [0, 1, None]
