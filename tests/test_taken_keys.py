"""Keys that all sessions need and that another program takes while a worker runs."""

import logging

import pytest

from schemas.keys import Keys
from schemas.turns import SessionEnded
from tests.stage import PCM16, Stage, check_order, words
from tests.waiting import eventually
from worker.local.engines.script import say
from worker.service import Worker


def _unready(worker: Worker, key: str) -> bool:
    return any(
        reason.startswith("redis: ") and f"another program has the key {key}, a string" in reason
        for reason in worker.readiness.reasons
    )


@pytest.mark.parametrize("name", ["sessions", "gate"])
async def test_worker_waits_for_a_key_that_another_program_has(
    stage: Stage, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.ERROR)
    key = getattr(Keys(stage.prefix), name)
    async with stage.worker(stt_max_connections=2) as worker:
        await eventually(lambda: worker.readiness.ready, "a worker that is ready")
        await stage.redis.delete(key)
        await stage.redis.set(key, "x")
        await eventually(lambda: _unready(worker, key), "a worker that names the key")
        await stage.redis.delete(key)
        await eventually(lambda: worker.readiness.ready, "a worker that is ready again")
        await stage.announce("call-1")
        await stage.play("call-1", say([1, 2], PCM16))
        events = (await stage.until_ended("call-1"))["call-1"]
        assert not any(worker.host.stats.faults.values())
    check_order(events)
    assert words(events) == [1, 2]
    assert isinstance(events[-1], SessionEnded)
    lines = [each.getMessage() for each in caplog.records]
    assert lines
    assert all(f"has the key {key}" in line and "set TURNBUS_PREFIX" in line for line in lines)
