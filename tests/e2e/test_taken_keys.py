"""Shared keys that another program overwrites while a worker runs."""

import logging

import pytest

from schemas.keys import Keys
from schemas.turns import SessionEnded
from tests.support.harness import PCM16, Harness, check_order, words
from tests.support.polling import eventually
from worker.local.emulator.engines.script import synthesize_words
from worker.worker import Worker


def _unready(worker: Worker, key: str) -> bool:
    return any(
        reason.startswith("redis: ") and f"another program has the key {key}, a string" in reason
        for reason in worker.readiness.reasons
    )


@pytest.mark.parametrize("name", ["sessions", "gate"])
async def test_worker_waits_while_another_program_holds_a_key(
    harness: Harness, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.ERROR)
    key = getattr(Keys(harness.prefix), name)
    async with harness.worker(stt_max_connections=2) as worker:
        await eventually(lambda: worker.readiness.ready, "a worker that is ready")
        await harness.redis.delete(key)
        await harness.redis.set(key, "x")
        await eventually(lambda: _unready(worker, key), "a worker that names the key")
        await harness.redis.delete(key)
        await eventually(lambda: worker.readiness.ready, "a worker that is ready again")
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1, 2], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
        assert not any(worker.context.stats.internal_errors.values())
    check_order(events)
    assert words(events) == [1, 2]
    assert isinstance(events[-1], SessionEnded)
    lines = [each.getMessage() for each in caplog.records]
    assert lines
    assert all(f"has the key {key}" in line and "set TURNBUS_PREFIX" in line for line in lines)
