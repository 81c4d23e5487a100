"""Each death of a worker is detected once, and its records are removed."""

from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from schemas.keys import Keys
from schemas.turns import WorkerRecord
from tests.support.harness import ON_CLUSTER_TOO
from tests.support.polling import eventually
from worker.bus.client.connection import RedisHealth
from worker.bus.liveness import POLL_INTERVAL_S, RECORDS_INTERVAL_S, Liveness
from worker.bus.ownership import SessionLeases
from worker.bus.registry import WorkerRegistry

ALIEN: dict[Any, Any] = {
    "not UTF-8": b'{"consumer":"\xff","host":"h","pid":1}',
    "a key that is not": b'{"\xff":1}',
    "deep": b'{"other":' + b"[" * 100_000,
    "of another shape": b"5",
    b"\xff": b"",
}
"""Records that no worker wrote."""


@ON_CLUSTER_TOO
async def test_death_is_reported_once(
    redis: Redis,
    as_worker: Redis,
    bus_prefix: str,
    expected_leftovers: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected_leftovers += ["sessions", "workers"]
    keys = Keys(bus_prefix)
    one, two = (SessionLeases(as_worker, keys, name, f"nonce-{name}") for name in ("one", "two"))
    await one.ensure_group()
    for intake in (one, two):
        await intake.read_new(1, 1)
    watcher, watched = (Liveness(as_worker, RedisHealth(), keys, intake) for intake in (one, two))
    record = WorkerRecord(
        consumer="two", host="h", pid=1, sessions=0, capacity=1, state="ready", heartbeat=0.0
    )
    await WorkerRegistry(as_worker, RedisHealth(), keys).register("worker", record)
    await redis.hset(keys.workers, mapping=ALIEN)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.watch)
        async with anyio.create_task_group() as life:
            life.start_soon(watched.advertise)
            await eventually(lambda: "two" in watcher._seen, "the worker to be seen alive")
            life.cancel_scope.cancel()
        await eventually(lambda: "two" in watcher.dead, "its death")
        for _ in range(3 * int(RECORDS_INTERVAL_S / POLL_INTERVAL_S)):
            await watcher.remove_dead(set(watcher.dead))
            await anyio.sleep(POLL_INTERVAL_S)
        tasks.cancel_scope.cancel()
    assert len([line for line in caplog.messages if "is dead" in line]) == 1
    assert (await redis.hgetall(keys.workers)).keys() == {
        name if isinstance(name, bytes) else name.encode() for name in ALIEN
    }
    assert await one.consumers(0) == {"one": True}


async def test_worker_that_leaves_is_not_reported_dead(
    as_worker: Redis,
    bus_prefix: str,
    expected_leftovers: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected_leftovers.append("sessions")
    keys = Keys(bus_prefix)
    one, two = (SessionLeases(as_worker, keys, name, f"nonce-{name}") for name in ("one", "two"))
    await one.ensure_group()
    watcher, watched = (Liveness(as_worker, RedisHealth(), keys, intake) for intake in (one, two))
    for intake in (one, two):
        await intake.read_new(1, 1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.watch)
        async with anyio.create_task_group() as life:
            life.start_soon(watched.advertise)
            await anyio.sleep(3 * POLL_INTERVAL_S)
            life.cancel_scope.cancel()
        assert await two.delete_consumer("two")
        await anyio.sleep(4 * POLL_INTERVAL_S)  # before the next periodic read of the list
        tasks.cancel_scope.cancel()
    assert not watcher.dead
    assert not [line for line in caplog.messages if "is dead" in line]
