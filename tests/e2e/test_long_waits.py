"""A session that waits for its socket or for Redis is not idle: it neither parks nor ends."""

import anyio
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from schemas.turns import TurnUpdate
from tests.support.acl import GuardedRedis
from tests.support.harness import PCM16, Harness, check_order, words
from tests.support.polling import eventually
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.worker import Worker

WORDS = list(range(8))


def _phases(worker: Worker) -> list[str]:
    return [session.phase.value for session in worker.running]


async def test_wait_for_a_socket_beyond_the_parking_timeout(
    harness: Harness, stt: TurnsServer
) -> None:
    async with harness.worker(park_s=1.0):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_silence(300, PCM16), end=False)
        async with stt.outage():
            stt.cut_all()
            await harness.play("call-1", synthesize_words(WORDS, PCM16), pause_s=0, end=False)
            await anyio.sleep(1.5)
        await harness.until("call-1", TurnUpdate, len(WORDS))
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == WORDS
    assert len(stt.connections) == 2


async def test_wait_for_a_socket_beyond_the_idle_timeout(
    harness: Harness, stt: TurnsServer
) -> None:
    async with harness.worker(park_s=1.0, session_idle_s=1.5):
        async with stt.outage():
            await harness.play(
                "call-1",
                synthesize_silence(230, PCM16) + synthesize_words(WORDS, PCM16),
                pause_s=0,
                end=False,
            )
            await harness.announce("call-1")
            await anyio.sleep(2.5)
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == WORDS


async def test_wait_for_a_permit_beyond_the_timeouts(
    harness: Harness, stt: TurnsServer, expected_leftovers: list[str]
) -> None:
    expected_leftovers += ["gate", "*holders"]
    async with harness.worker(park_s=1.0, stt_max_connections=1):
        await harness.announce("first")
        await harness.play("first", synthesize_words([1], PCM16), end=False)
        await harness.announce("second")
        await harness.play(
            "second",
            synthesize_silence(230, PCM16) + synthesize_words(WORDS, PCM16),
            pause_s=0,
            end=False,
        )
        await harness.play("first", synthesize_words(range(2, 12), PCM16))
        await harness.until("second", TurnUpdate, len(WORDS))
        await harness.append("second", end="1")
        events = (await harness.until_ended("first", "second"))["second"]
    assert words(events) == WORDS
    assert len(stt.connections) == 2


async def test_wait_for_redis_beyond_the_timeouts(stt: TurnsServer) -> None:
    """No producer can append during a Redis outage."""
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        Harness.open(server.url, "stt", stt.url) as harness,
        harness.worker(park_s=1.0, session_idle_s=4.0) as worker,
    ):
        await harness.announce("call-1")
        await harness.play(
            "call-1",
            synthesize_words([0, 1], PCM16) + synthesize_silence(700, PCM16),
            pause_s=0,
            end=False,
        )
        await eventually(lambda: _phases(worker) == ["parked"], "the session to park")
        await server.kill()
        await anyio.sleep(4.0)
        await server.restart()
        with anyio.fail_after(30):
            while True:
                try:
                    await harness.append("call-1", audio=synthesize_words([2], PCM16), end="1")
                    break
                except RedisConnectionError:
                    await anyio.sleep(0.05)
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [0, 1, 2]


@pytest.mark.parametrize("odd", [b"", b"\0"], ids=["whole", "and half a sample"])
async def test_parked_session_requests_no_socket(
    harness: Harness, stt: TurnsServer, odd: bytes
) -> None:
    async with harness.worker(park_s=1.0) as worker:
        await harness.announce("call-1")
        sound = synthesize_words([1], PCM16) + synthesize_silence(700, PCM16) + odd
        await harness.play("call-1", sound, pause_s=0, end=False)
        await eventually(lambda: _phases(worker) == ["parked"], "the session to park")
        await anyio.sleep(1.0)
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [1]
    assert len(stt.connections) == 1


async def test_flushing_session_wants_no_audio(harness: Harness, stt: TurnsServer) -> None:
    """Until the flush is over, the reader would read the same entries again and again."""
    stt.faults.set("half-open@flush,count=1")
    async with harness.worker(park_s=1.0) as worker:
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_silence(600, PCM16), end=False)
        await eventually(lambda: _phases(worker) == ["flushing"], "a session that flushes")
        (session,) = worker.running
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0, end=False)
        assert not session.wants_audio
        stt.cut_all()
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1]
