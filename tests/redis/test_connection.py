"""Connections to Redis that close at a bad moment."""

from functools import partial
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.support.acl import GuardedRedis
from tests.support.embedded_cluster import execute
from tests.support.harness import Place
from tests.support.polling import PATIENCE_S
from worker.bus.client.connection import RedisHealth, closing, connect


@pytest.mark.parametrize("use_uvloop", [False, True])
def test_connection_closed_before_a_command_is_an_outage(
    redis_server: GuardedRedis, use_uvloop: bool
) -> None:
    async def ride_out() -> RedisHealth:
        health = RedisHealth()
        async with connect(redis_server.url) as redis, redis.client() as client:
            await client.ping()
            assert client.connection is not None
            assert client.connection._writer is not None
            client.connection._writer.transport.abort()
            await health.retry(client.ping)
        return health

    health = anyio.run(ride_out, backend_options={"use_uvloop": use_uvloop})
    assert health.up
    assert health.since > 0


async def test_connection_closed_under_a_command_is_an_outage(redis_server: GuardedRedis) -> None:
    """Another task closes it, before the write, because the node is no longer a master."""
    async with connect(redis_server.url) as redis, redis.client() as client:
        await client.ping()
        assert client.connection is not None
        health = RedisHealth()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(health.retry, client.ping)
            tasks.start_soon(partial(client.connection.disconnect, nowait=True))
        assert health.up
        assert health.since > 0


async def test_blocking_read_on_a_demoted_master_is_an_outage() -> None:
    async with GuardedRedis.start() as server, connect(server.url) as redis:
        health = RedisHealth()
        replies: list[Any] = []

        async def read() -> None:
            replies.append(await health.retry(partial(redis.xread, {"a": "0"}, block=60_000)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            while not (await redis.info("clients"))["blocked_clients"]:
                await anyio.sleep(0.01)
            await execute(redis, "REPLICAOF", "127.0.0.1", 1)
            while health.up:
                await anyio.sleep(0.01)
            await execute(redis, "REPLICAOF", "NO", "ONE")
            await redis.xadd("a", {"b": "c"})
        assert [key for key, _ in replies[0]] == [b"a"]


def test_outage_logs_are_rate_limited(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.bus.client.connection.OUTAGE_LOG_INTERVAL_S", 3600.0)
    caplog.set_level("INFO", "worker.bus.client.connection")
    health = RedisHealth()
    for _ in range(3):
        for _ in range(2):
            health.failed(ConnectionError("refused"))
        health.answered()
    assert [line.split()[1] for line in caplog.messages] == ["is", "answers"]


async def test_client_is_closed_even_if_cancelled(redis: Redis, bus_place: Place) -> None:
    client = connect(f"{bus_place.url}?client_name=cancelled")

    async def connections() -> int:
        return [each["name"] for each in await redis.client_list()].count("cancelled")

    with anyio.CancelScope() as scope:
        async with closing(client):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(client.execute_command, "PING")
            assert await connections() == 3
            scope.cancel()
            await anyio.sleep_forever()
    with anyio.fail_after(PATIENCE_S):
        while await connections():
            await anyio.sleep(0.01)
