"""Connections to Redis that are cut at a bad moment."""

import anyio
import pytest
from redis.asyncio import Redis

from tests.stage import Place
from tests.users import GuardedRedis
from worker.bus.connection import BusHealth, closing, connect, patiently


@pytest.mark.parametrize("use_uvloop", [False, True])
def test_a_connection_closed_before_a_command_is_an_outage(
    redis_server: GuardedRedis, use_uvloop: bool
) -> None:
    async def ride_out() -> BusHealth:
        health = BusHealth()
        async with connect(redis_server.url) as redis, redis.client() as client:
            await client.ping()
            assert client.connection is not None
            assert client.connection._writer is not None
            client.connection._writer.transport.abort()
            await patiently(health, client.ping)
        return health

    health = anyio.run(ride_out, backend_options={"use_uvloop": use_uvloop})
    assert health.up
    assert health.since > 0


def test_outages_are_told_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.bus.connection.TOLD_EVERY_S", 3600.0)
    caplog.set_level("INFO", "worker.bus.connection")
    health = BusHealth()
    for _ in range(3):
        for _ in range(2):
            health.failed(ConnectionError("refused"))
        health.answered()
    assert [line.split()[1] for line in caplog.messages] == ["is", "answers"]


async def test_closed_for_certain_even_if_cancelled(redis: Redis, bus_place: Place) -> None:
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
    with anyio.fail_after(10):
        while await connections():
            await anyio.sleep(0.01)
