"""Filler silence replaces the audio of a stopped producer, and is never sent for other reasons."""

import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import anyio
import pytest

from schemas import Encoding
from schemas.turns import TurnEnd
from tests.support.acl import GuardedRedis, as_user
from tests.support.harness import PCM16, Harness, check_order, words
from tests.support.polling import eventually
from worker.bench.proxy import Proxy
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.worker import Worker

HALF = len(synthesize_words([0], PCM16)) // 2
PAUSE_S = 1.5
"""Pause far longer than the half second after which a producer counts as stopped."""


@pytest.fixture
async def way(harness: Harness) -> AsyncIterator[Proxy]:
    """A link between the worker and Redis that can be blocked."""
    port = urlsplit(harness.redis_url).port
    assert port is not None
    async with Proxy.open(lambda: port) as proxy:
        yield proxy


def _through(way: Proxy) -> str:
    return as_user(f"redis://127.0.0.1:{way.port}/0", "worker")


async def _begin(harness: Harness, worker: Worker, sound: bytes) -> None:
    """Append sound; wait until the provider received it and the worker read an empty stream."""
    await harness.announce("call-1")
    await harness.append("call-1", audio=sound)
    with anyio.fail_after(30):
        while not any(session._sender.socket_bytes >= len(sound) for session in worker.running):
            await anyio.sleep(0.01)
        sent_at = time.monotonic()
        while any(session.poll_schedule.last_polled_at < sent_at for session in worker.running):
            await anyio.sleep(0.01)


async def _finish(harness: Harness, sound: bytes) -> None:
    await harness.append("call-1", audio=sound)
    await harness.append("call-1", end="1")
    events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [0, 1, 2]


async def test_stopped_producer_gets_filler(harness: Harness) -> None:
    async with harness.worker() as worker:
        await _begin(harness, worker, synthesize_words([0, 1], PCM16))
        await harness.until("call-1", TurnEnd)
        await _finish(harness, synthesize_words([2], PCM16))


SPOKEN: dict[str, bytes | str] = {
    "audio": synthesize_words([0, 1], PCM16),
    "seq": "1",
    "src": "p",
}


@pytest.mark.parametrize("fields", [SPOKEN, {"note": "no audio"}], ids=["repeat", "empty"])
async def test_entries_without_new_audio_delay_no_filler(
    harness: Harness, fields: dict[str, bytes | str]
) -> None:
    async def append_often() -> None:
        while True:
            await anyio.sleep(0.2)
            await harness.append("call-1", **fields)

    async with harness.worker(), anyio.create_task_group() as tasks:
        await harness.announce("call-1")
        await harness.append("call-1", **SPOKEN)
        tasks.start_soon(append_often)
        with anyio.fail_after(30):
            await harness.until("call-1", TurnEnd)
        tasks.cancel_scope.cancel()


async def test_filler_in_every_encoding(harness: Harness) -> None:
    async with harness.worker():
        for encoding in Encoding:
            audio = AudioFormat(encoding, 8_000)
            await harness.announce(encoding, audio)
            await harness.play(encoding, synthesize_words([0, 1], audio), pause_s=0, end=False)
        # No silence was appended: only filler can end these turns, and it produces no word.
        ends = [await harness.until(encoding, TurnEnd) for encoding in Encoding]
        assert [end.transcript for end in ends] == ["w0 w1"] * len(Encoding)
        for encoding in Encoding:
            await harness.play(
                encoding, synthesize_words([2], AudioFormat(encoding, 8_000)), pause_s=0
            )
        events = await harness.until_ended(*Encoding)
    for encoding in Encoding:
        check_order(events[encoding])
        assert words(events[encoding]) == [0, 1, 2]
        assert events[encoding][-1].audio_ms == 600, "filler is not the session's audio"


async def test_no_filler_while_redis_does_not_answer(harness: Harness, way: Proxy) -> None:
    sound = synthesize_words([0, 1, 2], PCM16)
    async with harness.worker(redis_url=_through(way)) as worker:
        await _begin(harness, worker, sound[: 3 * HALF])
        for link in way.links:
            link.stall()
        await harness.append("call-1", audio=sound[3 * HALF : 5 * HALF])
        await anyio.sleep(PAUSE_S)
        for link in way.links:
            link.flow()
        await _finish(harness, sound[5 * HALF :])


async def test_no_filler_at_the_end_of_a_backlog_in_an_outage(harness: Harness, way: Proxy) -> None:
    sound = synthesize_words(range(11), PCM16)
    cut = len(sound) - HALF
    async with harness.worker(redis_url=_through(way)) as worker:
        await harness.announce("call-2")  # has a pending read all the time because it has no audio
        for at in range(0, cut, HALF):
            await harness.append("call-1", audio=sound[at : at + HALF])
        await harness.announce("call-1")
        with anyio.fail_after(30):
            # Enough audio is buffered that the reader skips this session.
            while not any(
                cut - session._sender.socket_bytes < 5 * HALF for session in worker.running
            ):
                await anyio.sleep(0.005)
        for link in way.links:
            link.stall()
        await harness.append("call-1", audio=sound[cut:])
        await anyio.sleep(PAUSE_S)
        for link in way.links:
            link.flow()
        await harness.append("call-1", end="1")
        await harness.append("call-2", end="1")
        events = await harness.until_ended("call-1", "call-2")
    assert words(events["call-1"]) == list(range(11))


async def test_no_filler_when_redis_returns_before_the_producer(stt: TurnsServer) -> None:
    sound = synthesize_words([0, 1, 2], PCM16) + synthesize_silence(600, PCM16)
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        Harness.open(server.url, "stt", stt.url) as harness,
        harness.worker() as worker,
    ):
        await _begin(harness, worker, sound[: 3 * HALF])
        await server.kill()
        await anyio.sleep(PAUSE_S)
        await server.restart()
        await eventually(lambda: worker.health.up, "Redis")
        await anyio.sleep(0.2)
        await _finish(harness, sound[3 * HALF :])
