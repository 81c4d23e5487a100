"""Redis's clock: whatever ours says, the age of an entry is what it is."""

import os
import re
import signal
import time

import anyio
import pytest
from redis.asyncio import Redis

from tests.stage import PCM16, Stage, words
from tests.users import GuardedRedis
from worker.bus import clock
from worker.bus.clock import BusClock
from worker.bus.connection import BusHealth, connect
from worker.local.engines.script import hush, say


class Wrong:
    """The `time` module of a machine whose clock is 700 s ahead."""

    monotonic = time.monotonic

    @staticmethod
    def time() -> float:
        return time.time() + 700


async def test_a_clock_that_is_wrong_costs_no_audio(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clock, "time", Wrong)
    async with stage.worker(max_lag_s=600, replay_speed=0.0) as worker:
        await stage.announce("call-1")
        await stage.play("call-1", say([1, 2, 3], PCM16) + hush(600, PCM16), pause_s=0)
        events = (await stage.until_ended("call-1"))["call-1"]
        assert worker.host.stats.chunk_lag.sum_s < 600
    assert words(events) == [1, 2, 3]
    told = [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]
    assert len(told) == 1
    [offset_s] = re.findall(r"Redis's clock is (\S+) s from this machine's", told[0])
    assert -800 < float(offset_s) < -600


async def test_a_clock_that_is_set_makes_nothing_old(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus_clock = BusClock(redis, BusHealth())
    await bus_clock.ask()
    seconds, _ = await redis.time()
    monkeypatch.setattr(clock, "time", Wrong)
    assert bus_clock.age_s(f"{seconds}000-0") < 600
    await bus_clock.ask()
    assert bus_clock.age_s(f"{seconds}000-0") < 600


@pytest.mark.parametrize("away", ["frozen", "killed"])
async def test_a_late_answer_is_no_difference(away: str, caplog: pytest.LogCaptureFixture) -> None:
    async with GuardedRedis.start() as server, connect(server.url) as redis:
        bus_clock = BusClock(redis, BusHealth())
        await bus_clock.ask()
        if away == "frozen":
            os.kill(server.pid, signal.SIGSTOP)
        else:
            await server.kill()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bus_clock.ask)
            await anyio.sleep(2.5)
            if away == "frozen":
                os.kill(server.pid, signal.SIGCONT)
            else:
                await server.restart()
    assert abs(bus_clock.ahead_s) < 0.01
    assert not [record for record in caplog.records if "clock" in record.getMessage()]
