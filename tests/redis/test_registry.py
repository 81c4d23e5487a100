"""Records of workers, also of two processes with one worker id, and the list of lanes."""

import anyio
import pytest
from redis.asyncio import Redis

from schemas.keys import Keys
from schemas.turns import WorkerRecord
from tests.redis.contracts import contract_of
from tests.support.harness import Harness
from tests.support.polling import PATIENCE_S
from worker.bus import scripts
from worker.bus.client.connection import RedisHealth
from worker.bus.registry import WorkerRegistry, delete_record


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if line.startswith("another process runs")]


def record(consumer: str, heartbeat: float) -> WorkerRecord:
    return WorkerRecord(
        consumer=consumer,
        host="h",
        pid=7,
        sessions=0,
        capacity=1,
        state="ready",
        heartbeat=heartbeat,
    )


@pytest.fixture
def keys(bus_prefix: str, expected_leftovers: list[str]) -> Keys:
    expected_leftovers.append("workers")
    return Keys(bus_prefix)


async def test_predecessor_is_not_a_duplicate(
    as_worker: Redis, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    await WorkerRegistry(as_worker, RedisHealth(), keys).register("w", record("w-1", 1.0))
    again = WorkerRegistry(as_worker, RedisHealth(), keys)
    for at in (2.0, 3.0, 4.0):
        await again.register("w", record("w-2", at))
    # Redis lost its latest writes, and has the predecessor's record again.
    await WorkerRegistry(as_worker, RedisHealth(), keys).register("w", record("w-1", 1.0))
    await again.register("w", record("w-2", 5.0))
    assert _warnings(caplog) == []


async def test_each_duplicate_is_logged_once(
    as_worker: Redis, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (WorkerRegistry(as_worker, RedisHealth(), keys) for _ in range(2))
    for at in (1.0, 2.0, 3.0):
        await one.register("w", record("w-1", at))
        await two.register("w", record("w-2", at + 0.5))
    line = (
        "another process runs as worker w, pid 7 on h: `turnbus drain` and "
        f"{keys.workers} cannot distinguish them; give each its own TURNBUS_WORKER_ID"
    )
    assert _warnings(caplog) == [line, line]


@pytest.mark.parametrize("written", [b"{}", b"\xff", b"", b'{"later":' + b"[" * 100_000])
async def test_record_of_another_version_is_left_alone(
    as_worker: Redis,
    redis: Redis,
    keys: Keys,
    written: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = WorkerRegistry(as_worker, RedisHealth(), keys)
    for at in (1.0, 2.0):
        await registry.register("w", record("w-1", at))
        await redis.hset(keys.workers, "w", written)
    await redis.delete(keys.workers)
    await redis.set(keys.workers, "no hash")
    await registry.register("w", record("w-1", 3.0))
    assert _warnings(caplog) == []


async def test_two_workers_with_one_id(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    async with harness.worker(worker_id="w"), harness.worker(worker_id="w"):
        with anyio.fail_after(PATIENCE_S):
            while len(_warnings(caplog)) < 2:
                await anyio.sleep(0.05)


@contract_of(scripts.write, scripts.delete_record)
async def test_only_the_record_of_the_consumer_is_deleted(
    as_worker: Redis, redis: Redis, keys: Keys
) -> None:
    await WorkerRegistry(as_worker, RedisHealth(), keys).register("w", record("one", 0.0))
    await delete_record(as_worker, keys, "w", "another")
    assert await redis.hexists(keys.workers, "w")
    await delete_record(as_worker, keys, "w", "one")
    assert not await redis.exists(keys.workers)


@pytest.mark.parametrize("written", [b"", b"{", b"5", b'{"consumer":5}'])
async def test_worker_record_of_another_type_is_left_alone(
    as_worker: Redis, redis: Redis, keys: Keys, written: bytes
) -> None:
    await redis.hset(keys.workers, "w", written)
    await delete_record(as_worker, keys, "w", "one")
    assert await redis.hget(keys.workers, "w") == written


async def test_records_key_of_another_type_is_left_alone(
    as_worker: Redis, redis: Redis, keys: Keys
) -> None:
    await redis.set(keys.workers, "another program's")
    await delete_record(as_worker, keys, "w", "one")
    assert await redis.get(keys.workers) == b"another program's"


async def test_lanes_are_listed(
    as_worker: Redis, redis: Redis, keys: Keys, expected_leftovers: list[str]
) -> None:
    expected_leftovers.append("lanes")
    registry = WorkerRegistry(as_worker, RedisHealth(), keys)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(registry.list_lanes)
        for lane in ("0", "eu", "0"):
            registry.add_lane(lane)
        with anyio.fail_after(PATIENCE_S):
            while await redis.smembers(keys.lanes) != {b"0", b"eu"}:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
