"""Two processes with one worker id, and one process that was restarted."""

import anyio
import pytest
from redis.asyncio import Redis

from schemas.keys import Keys
from schemas.turns import WorkerRecord
from tests.support.harness import Harness
from tests.support.polling import PATIENCE_S
from worker.bus.ownership import SessionOwnership


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "worker.bus.workers"]


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
    await SessionOwnership(as_worker, keys, "w-1", "1").register("w", record("w-1", 1.0))
    again = SessionOwnership(as_worker, keys, "w-2", "2")
    for at in (2.0, 3.0, 4.0):
        await again.register("w", record("w-2", at))
    # Redis lost its latest writes, and has the predecessor's record again.
    await SessionOwnership(as_worker, keys, "w-1", "1").register("w", record("w-1", 1.0))
    await again.register("w", record("w-2", 5.0))
    assert _warnings(caplog) == []


async def test_each_duplicate_is_logged_once(
    as_worker: Redis, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (SessionOwnership(as_worker, keys, f"w-{n}", n) for n in "12")
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
    intake = SessionOwnership(as_worker, keys, "w-1", "1")
    for at in (1.0, 2.0):
        await intake.register("w", record("w-1", at))
        await redis.hset(keys.workers, "w", written)
    await redis.delete(keys.workers)
    await redis.set(keys.workers, "no hash")
    await intake.register("w", record("w-1", 3.0))
    assert _warnings(caplog) == []


async def test_two_workers_with_one_id(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    async with harness.worker(worker_id="w"), harness.worker(worker_id="w"):
        with anyio.fail_after(PATIENCE_S):
            while len(_warnings(caplog)) < 2:
                await anyio.sleep(0.05)
