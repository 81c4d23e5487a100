"""Debian's Redis 7.0, alone, as a cluster, and below its own sentinel."""

from pathlib import Path
from signal import SIGKILL

import anyio
import pytest
from redis.asyncio import Redis

from schemas.turns import TurnUpdate
from tests.support.embedded_cluster import EmbeddedCluster, EmbeddedSentinel
from tests.support.harness import PCM16, check_order, staged, words
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.redis import EmbeddedRedis


@pytest.mark.parametrize(
    "kind",
    [
        EmbeddedRedis,
        pytest.param(EmbeddedCluster, marks=pytest.mark.slow),
        pytest.param(EmbeddedSentinel, marks=pytest.mark.slow),
    ],
)
async def test_worker_killed_inside_a_turn_on_redis_7(
    redis_7_binary: Path,
    stt: TurnsServer,
    tmp_path: Path,
    kind: type[EmbeddedRedis | EmbeddedCluster | EmbeddedSentinel],
) -> None:
    sound = (
        synthesize_words(range(6), PCM16)
        + synthesize_silence(900, PCM16)
        + synthesize_words(range(6, 9), PCM16)
    )
    async with kind.start(binary=redis_7_binary) as bus, staged(bus, stt.url) as harness:
        async with (
            harness.worker_process("one", tmp_path / "one", lease_ms="2000") as first,
            anyio.create_task_group() as tasks,
        ):
            await harness.announce("call-1", lane="a")
            tasks.start_soon(harness.play, "call-1", sound)
            await harness.until("call-1", TurnUpdate, 2)
            async with harness.worker_process("two", tmp_path / "two", lease_ms="2000"):
                first.send_signal(SIGKILL)
                events = (await harness.until_ended("call-1"))["call-1"]
        check_order(events)
        assert words(events) == list(range(9))
        await _is_redis_7(harness.redis)


async def _is_redis_7(redis: Redis) -> None:
    about = await redis.info("server")
    assert about["redis_version"].startswith("7.0.")
    assert "valkey_version" not in about
