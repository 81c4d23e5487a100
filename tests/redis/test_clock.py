"""The Redis clock determines the age of an entry, whatever the local clock shows."""

import os
import re
import signal
import time

import anyio
import pytest
from redis.asyncio import Redis

from tests.support.acl import GuardedRedis
from tests.support.harness import PCM16, Harness, words
from worker.bus import clock
from worker.bus.client.connection import RedisHealth, connect
from worker.bus.clock import EntryAges, RedisClock
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words


class FastClock:
    """The `time` module of a machine whose clock is 700 s ahead."""

    monotonic = time.monotonic

    @staticmethod
    def time() -> float:
        return time.time() + 700


async def test_wrong_local_clock_discards_no_audio(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clock, "time", FastClock)
    async with harness.worker(max_lag_s=600, replay_speed=0.0) as worker:
        await harness.announce("call-1")
        await harness.play(
            "call-1", synthesize_words([1, 2, 3], PCM16) + synthesize_silence(600, PCM16), pause_s=0
        )
        events = (await harness.until_ended("call-1"))["call-1"]
        assert worker.context.stats.chunk_lag.sum_s < 600
    assert words(events) == [1, 2, 3]
    text = [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]
    assert len(text) == 1
    [offset_s] = re.findall(r"Redis clock differs from the local clock by (\S+) s", text[0])
    assert -800 < float(offset_s) < -600


async def test_adjusted_local_clock_makes_no_audio_old(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus_clock = RedisClock(redis, RedisHealth())
    await bus_clock.sync()
    seconds, _ = await redis.time()
    monkeypatch.setattr(clock, "time", FastClock)
    assert bus_clock.age_s(f"{seconds}000-0") < 600
    await bus_clock.sync()
    assert bus_clock.age_s(f"{seconds}000-0") < 600


@pytest.mark.parametrize("away", ["frozen", "killed"])
async def test_delayed_reply_is_not_a_clock_difference(
    away: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with GuardedRedis.start() as server, connect(server.url) as redis:
        bus_clock = RedisClock(redis, RedisHealth())
        await bus_clock.sync()
        if away == "frozen":
            os.kill(server.pid, signal.SIGSTOP)
        else:
            await server.kill()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bus_clock.sync)
            await anyio.sleep(2.5)
            if away == "frozen":
                os.kill(server.pid, signal.SIGCONT)
            else:
                await server.restart()
    assert abs(bus_clock.offset_s) < 0.01
    assert not [record for record in caplog.records if "clock" in record.getMessage()]


NOW_S = int(time.time())
OWN_IDS = {
    "counter": "1-0",
    "seconds": f"{NOW_S}-0",
    "microseconds": f"{NOW_S * 10**6}-0",
    "nanoseconds": f"{NOW_S * 10**9}-0",
    "hours ago": f"{(NOW_S - 4 * 3_600) * 1_000}-0",
    "tomorrow": f"{(NOW_S + 86_400) * 1_000}-0",
}


RUNS = (f"{NOW_S * 1_000}-0", "7-0", f"{NOW_S * 10**6}-0")


@pytest.mark.parametrize("run", RUNS, ids=["time", "counter", "microseconds"])
@pytest.mark.parametrize("case", OWN_IDS)
async def test_id_that_is_not_a_time_has_no_age(redis: Redis, case: str, run: str) -> None:
    """Other ids of its session have no age either, whatever the id of the session entry."""
    bus_clock = RedisClock(redis, RedisHealth())
    await bus_clock.sync()
    ages = EntryAges(bus_clock, run, untimed=False)
    assert ages.observe(f"{(NOW_S - 900) * 1_000}-0") >= 899
    assert ages.age_s(f"{(NOW_S - 900) * 1_000}-0") >= 899
    assert ages.observe(OWN_IDS[case]) == 0
    assert ages.age_s(OWN_IDS[case]) == ages.age_s("5-0") == 0
    assert EntryAges(bus_clock, run, untimed=True).age_s("5-0") == 0


async def test_ids_ahead_of_an_unsynchronized_clock_are_times(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Behind(FastClock):
        @staticmethod
        def time() -> float:
            return time.time() - 700

    monkeypatch.setattr(clock, "time", Behind)
    bus_clock = RedisClock(redis, RedisHealth())
    seconds, _ = await redis.time()
    ages = EntryAges(bus_clock, f"{seconds}000-0", untimed=False)
    ages.observe(f"{seconds}000-0")
    assert not ages.untimed
    await bus_clock.sync()
    ages.observe(f"{seconds}000-0")
    assert not ages.untimed
