"""Silence stands in for a producer that stopped, and for nobody else."""

import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import anyio
import pytest

from schemas import Encoding
from schemas.turns import TurnEnd
from tests.stage import PCM16, Stage, check_order, words
from tests.users import GuardedRedis, as_user
from tests.waiting import eventually
from worker.local.chaos.proxy import Proxy
from worker.local.engines.base import AudioFormat
from worker.local.engines.script import hush, say
from worker.local.server.server import TurnsServer
from worker.service import Worker

HALF = len(say([0], PCM16)) // 2
PAUSE_S = 1.5
"""Far longer than the half second after which a producer counts as having stopped."""


@pytest.fixture
async def way(stage: Stage) -> AsyncIterator[Proxy]:
    """Stand between the worker and Redis."""
    port = urlsplit(stage.redis_url).port
    assert port is not None
    async with Proxy.open(lambda: port) as proxy:
        yield proxy


def _through(way: Proxy) -> str:
    return as_user(f"redis://127.0.0.1:{way.port}/0", "worker")


async def _begin(stage: Stage, worker: Worker, sound: bytes) -> None:
    """Append sound; wait until the service has it and the worker saw that there is no more."""
    await stage.announce("call-1")
    await stage.append("call-1", audio=sound)
    with anyio.fail_after(30):
        while not any(session._uplink.sent >= len(sound) for session in worker.roster):
            await anyio.sleep(0.01)
        sent_at = time.monotonic()
        while any(session.rhythm.asked_at < sent_at for session in worker.roster):
            await anyio.sleep(0.01)


async def _finish(stage: Stage, sound: bytes) -> None:
    await stage.append("call-1", audio=sound)
    await stage.append("call-1", end="1")
    events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [0, 1, 2]


async def test_a_producer_stops(stage: Stage) -> None:
    async with stage.worker() as worker:
        await _begin(stage, worker, say([0, 1], PCM16))
        await stage.until("call-1", TurnEnd)
        await _finish(stage, say([2], PCM16))


async def test_silence_in_every_encoding(stage: Stage) -> None:
    async with stage.worker():
        for encoding in Encoding:
            audio = AudioFormat(encoding, 8_000)
            await stage.announce(encoding, audio)
            await stage.play(encoding, say([0, 1], audio), pause_s=0, end=False)
        # No silence was appended: what ends these turns, and is no word, is the filler.
        ends = [await stage.until(encoding, TurnEnd) for encoding in Encoding]
        assert [end.transcript for end in ends] == ["w0 w1"] * len(Encoding)
        for encoding in Encoding:
            await stage.play(encoding, say([2], AudioFormat(encoding, 8_000)), pause_s=0)
        events = await stage.until_ended(*Encoding)
    for encoding in Encoding:
        check_order(events[encoding])
        assert words(events[encoding]) == [0, 1, 2]
        assert events[encoding][-1].audio_ms == 600, "filler is not the session's audio"


async def test_redis_does_not_answer(stage: Stage, way: Proxy) -> None:
    sound = say([0, 1, 2], PCM16)
    async with stage.worker(redis_url=_through(way)) as worker:
        await _begin(stage, worker, sound[: 3 * HALF])
        for link in way.links:
            link.stall()
        await stage.append("call-1", audio=sound[3 * HALF : 5 * HALF])
        await anyio.sleep(PAUSE_S)
        for link in way.links:
            link.flow()
        await _finish(stage, sound[5 * HALF :])


async def test_redis_does_not_answer_at_the_end_of_a_backlog(stage: Stage, way: Proxy) -> None:
    sound = say(range(11), PCM16)
    cut = len(sound) - HALF
    async with stage.worker(redis_url=_through(way)) as worker:
        await stage.announce("call-2")  # is read for all the time: it has no audio
        for at in range(0, cut, HALF):
            await stage.append("call-1", audio=sound[at : at + HALF])
        await stage.announce("call-1")
        with anyio.fail_after(30):
            # So much is left that this session is not read for.
            while not any(cut - session._uplink.sent < 5 * HALF for session in worker.roster):
                await anyio.sleep(0.005)
        for link in way.links:
            link.stall()
        await stage.append("call-1", audio=sound[cut:])
        await anyio.sleep(PAUSE_S)
        for link in way.links:
            link.flow()
        await stage.append("call-1", end="1")
        await stage.append("call-2", end="1")
        events = await stage.until_ended("call-1", "call-2")
    assert words(events["call-1"]) == list(range(11))


async def test_redis_is_away_and_back_before_the_producer(stt: TurnsServer) -> None:
    sound = say([0, 1, 2], PCM16) + hush(600, PCM16)
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        Stage.open(server.url, "stt", stt.url) as stage,
        stage.worker() as worker,
    ):
        await _begin(stage, worker, sound[: 3 * HALF])
        await server.kill()
        await anyio.sleep(PAUSE_S)
        await server.restart()
        await eventually(lambda: worker.health.up, "Redis")
        await anyio.sleep(0.2)
        await _finish(stage, sound[3 * HALF :])
