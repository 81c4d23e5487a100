"""Deaths are noticed once each, and nothing of the dead is left."""

import anyio
import pytest
from redis.asyncio import Redis

from schemas.keys import Keys
from schemas.turns import WorkerRecord
from tests.stage import ON_CLUSTER_TOO
from worker.bus.connection import BusHealth
from worker.bus.intake import Intake
from worker.bus.liveness import LOOK_S, RECORDS_S, Liveness

pytestmark = ON_CLUSTER_TOO


async def test_a_death_is_told_once(
    redis: Redis,
    as_worker: Redis,
    bus_prefix: str,
    expected_leftovers: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected_leftovers.append("sessions")
    keys = Keys(bus_prefix)
    one, two = (Intake(as_worker, keys, name, f"nonce-{name}") for name in ("one", "two"))
    await one.ensure_group()
    for intake in (one, two):
        await intake.read_new(1, 1)
    watcher, watched = (Liveness(as_worker, BusHealth(), keys, intake) for intake in (one, two))
    record = WorkerRecord(
        consumer="two", host="h", pid=1, sessions=0, capacity=1, state="ready", heartbeat=0.0
    )
    await two.register("worker", record)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.watch)
        async with anyio.create_task_group() as life:
            life.start_soon(watched.proclaim)
            await anyio.sleep(RECORDS_S + 2 * LOOK_S)
            life.cancel_scope.cancel()
        with anyio.fail_after(30):
            while "two" not in watcher.dead:
                await anyio.sleep(0.01)
        for _ in range(3 * int(RECORDS_S / LOOK_S)):
            await watcher.forget(set(watcher.dead))
            await anyio.sleep(LOOK_S)
        tasks.cancel_scope.cancel()
    assert len([line for line in caplog.messages if "is dead" in line]) == 1
    assert not await redis.exists(keys.workers)
    assert await one.consumers(0) == {"one": True}
