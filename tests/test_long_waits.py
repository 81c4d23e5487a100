"""A session that waited for its socket, or for Redis, was not silent: not parked, not over."""

import anyio
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from schemas.turns import TurnUpdate
from tests.stage import PCM16, Stage, check_order, words
from tests.users import GuardedRedis
from tests.waiting import eventually
from worker.local.engines.script import hush, say
from worker.local.server.server import TurnsServer
from worker.service import Worker

WORDS = list(range(8))


def _phases(worker: Worker) -> list[str]:
    return [session.phase.value for session in worker.roster]


async def test_for_a_socket_beyond_parking(stage: Stage, stt: TurnsServer) -> None:
    async with stage.worker(park_s=1.0):
        await stage.announce("call-1")
        await stage.play("call-1", hush(300, PCM16), end=False)
        async with stt.outage():
            stt.cut_all()
            await stage.play("call-1", say(WORDS, PCM16), pause_s=0, end=False)
            await anyio.sleep(1.5)
        await stage.until("call-1", TurnUpdate, len(WORDS))
        await stage.append("call-1", end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == WORDS
    assert len(stt.connections) == 2


async def test_for_a_socket_beyond_the_end_of_idle_sessions(stage: Stage, stt: TurnsServer) -> None:
    async with stage.worker(park_s=1.0, session_idle_s=1.5):
        async with stt.outage():
            await stage.play("call-1", hush(230, PCM16) + say(WORDS, PCM16), pause_s=0, end=False)
            await stage.announce("call-1")
            await anyio.sleep(2.5)
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == WORDS


async def test_for_a_permit(stage: Stage, stt: TurnsServer, expected_leftovers: list[str]) -> None:
    expected_leftovers += ["gate", "*holders"]
    async with stage.worker(park_s=1.0, stt_max_connections=1):
        await stage.announce("first")
        await stage.play("first", say([1], PCM16), end=False)
        await stage.announce("second")
        await stage.play("second", hush(230, PCM16) + say(WORDS, PCM16), pause_s=0, end=False)
        await stage.play("first", say(range(2, 12), PCM16))
        await stage.until("second", TurnUpdate, len(WORDS))
        await stage.append("second", end="1")
        events = (await stage.until_ended("first", "second"))["second"]
    assert words(events) == WORDS
    assert len(stt.connections) == 2


async def test_for_redis(stt: TurnsServer) -> None:
    """While it is away, nobody can append."""
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        Stage.open(server.url, "stt", stt.url) as stage,
        stage.worker(park_s=1.0, session_idle_s=4.0) as worker,
    ):
        await stage.announce("call-1")
        await stage.play("call-1", say([0, 1], PCM16) + hush(700, PCM16), pause_s=0, end=False)
        await eventually(lambda: _phases(worker) == ["parked"], "the session to park")
        await server.kill()
        await anyio.sleep(4.0)
        await server.restart()
        with anyio.fail_after(30):
            while True:
                try:
                    await stage.append("call-1", audio=say([2], PCM16), end="1")
                    break
                except RedisConnectionError:
                    await anyio.sleep(0.05)
        events = (await stage.until_ended("call-1"))["call-1"]
    assert words(events) == [0, 1, 2]


@pytest.mark.parametrize("odd", [b"", b"\0"], ids=["whole", "and half a sample"])
async def test_a_parked_session_wants_no_socket(stage: Stage, stt: TurnsServer, odd: bytes) -> None:
    async with stage.worker(park_s=1.0) as worker:
        await stage.announce("call-1")
        sound = say([1], PCM16) + hush(700, PCM16) + odd
        await stage.play("call-1", sound, pause_s=0, end=False)
        await eventually(lambda: _phases(worker) == ["parked"], "the session to park")
        await anyio.sleep(1.0)
        await stage.append("call-1", end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    assert words(events) == [1]
    assert len(stt.connections) == 1
