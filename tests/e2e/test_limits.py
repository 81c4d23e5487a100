"""Limits: connection permits, and audio that is too old to be sent."""

import time

import anyio
import pytest

from schemas.keys import Keys
from schemas.turns import (
    AudioGap,
    SessionEnded,
    SessionError,
    SessionStarted,
    TurnEnd,
    TurnUpdate,
)
from tests.support.harness import PCM16, WORD, Harness, check_order, kinds, words
from tests.support.polling import eventually
from worker.bus import permits
from worker.bus.client.connection import RedisHealth, connect
from worker.bus.permits import ConnectionPermits, Permit
from worker.core.phases import Phase
from worker.local.emulator.engines.script import ScriptEngine, synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.local.redis import EmbeddedRedis

SESSIONS = [f"call-{number}" for number in range(5)]


async def test_open_sockets_never_exceed_the_permits(harness: Harness, stt: TurnsServer) -> None:
    most = 0
    async with (
        harness.worker(stt_max_connections=2),
        harness.worker(stt_max_connections=2, worker_id="other"),
    ):
        for number, session in enumerate(SESSIONS):
            await harness.announce(session)
            await harness.play(session, synthesize_words([number], PCM16), pause_s=0)
        async for event in harness.events():
            most = max(most, stt.open_connections)
            if isinstance(event, SessionEnded) and event.session == SESSIONS[-1]:
                break
        events = await harness.until_ended(*SESSIONS)
    assert most <= 2
    for number, session in enumerate(SESSIONS):
        assert words(events[session]) == [number]
    assert await harness.redis.zcard(f"{harness.prefix}:gate") == 0


async def test_parked_session_returns_its_permit(harness: Harness) -> None:
    async with harness.worker(stt_max_connections=1, park_s=1.0):
        await harness.announce("call-1")
        await harness.play(
            "call-1",
            synthesize_words([1], PCM16) + synthesize_silence(700, PCM16),
            pause_s=0,
            end=False,
        )
        await harness.announce("call-2")
        await harness.play("call-2", synthesize_words([2], PCM16))
        await harness.play("call-1", synthesize_words([3], PCM16))
        events = await harness.until_ended("call-1", "call-2")
    assert words(events["call-1"]) == [1, 3]
    assert words(events["call-2"]) == [2]


async def test_parking_session_stays_until_its_permit_is_free(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next owner never asks for the permit, so it would stay taken until it expires."""
    released, proceed = anyio.Event(), anyio.Event()
    release = ConnectionPermits.release

    async def release_slowly(self: ConnectionPermits, permit: Permit) -> None:
        released.set()
        await proceed.wait()
        await release(self, permit)

    monkeypatch.setattr(ConnectionPermits, "release", release_slowly)
    async with harness.worker(stt_max_connections=1, park_s=0.5) as worker:
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_silence(300, PCM16), pause_s=0, end=False)
        with anyio.fail_after(30):
            await released.wait()
        (session,) = worker.running
        assert session.phase is Phase.PARKED
        assert not session.can_release
        proceed.set()
        await eventually(lambda: session.can_release, "the permit to be released")
        await harness.play("call-1", b"")
        await harness.until_ended("call-1")


async def _append_aged(harness: Harness, session: str, sound: bytes, age_s: float) -> None:
    """Append sound that arrived this long ago, by its entry ids."""
    came_ms = int((time.time() - age_s) * 1000)
    for at in range(0, len(sound), 3_200):
        chunk = sound[at : at + 3_200]
        await harness.producer.xadd(harness.audio_key(session), {"audio": chunk}, id=f"{came_ms}-*")


async def test_old_audio_is_dropped_and_announced(harness: Harness, stt: TurnsServer) -> None:
    await stt.stop()
    async with harness.worker(max_lag_s=600.0):
        await harness.announce("call-1")
        await _append_aged(harness, "call-1", synthesize_words([1, 2], PCM16)[:-1], age_s=3_600)
        await harness.until("call-1", SessionError)
        settings = ServerSettings(port=stt.port)
        async with TurnsServer.serve(settings, ScriptEngine()) as server:
            await eventually(lambda: server.open_connections, "the session to connect")
            # The odd byte completes a sample whose other byte was dropped.
            await harness.play("call-1", b"\0" + synthesize_words([3, 4], PCM16))
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [3, 4]
    (gap,) = [event for event in events if isinstance(event, AudioGap)]
    assert (gap.missing_ms, gap.reason) == (399, "backlog")


async def test_open_turn_ends_before_late_audio_is_dropped(
    harness: Harness, stt: TurnsServer
) -> None:
    """Audio that was sent is replayed; only audio that was not sent is late."""
    async with harness.worker(max_lag_s=60.0):
        await harness.announce("call-1")
        await harness.until("call-1", SessionStarted)
        await _append_aged(harness, "call-1", synthesize_words([1, 2], PCM16), age_s=55)
        await harness.until("call-1", TurnUpdate, 2)
        await stt.stop()
        await _append_aged(harness, "call-1", synthesize_words([3], PCM16), age_s=54)
        await anyio.sleep(6.5)
        async with TurnsServer.serve(ServerSettings(port=stt.port), ScriptEngine()) as server:
            await harness.until("call-1", AudioGap)
            await eventually(lambda: server.open_connections, "the session to connect")
            await harness.play("call-1", synthesize_words([4], PCM16))
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    ends = [event for event in events if isinstance(event, TurnEnd)]
    assert (ends[0].transcript.split(), ends[0].reason) == (["w1", "w2"], "close")
    assert words(events) == [1, 2, 4]
    (gap,) = [event for event in events if isinstance(event, AudioGap)]
    assert (gap.missing_ms, gap.reason) == (200, "backlog")


async def test_long_turn_is_not_late(harness: Harness, stt: TurnsServer) -> None:
    """The turn loses its socket, then its worker, once it is longer than `max_lag_s`."""
    sound = synthesize_words(range(50), PCM16)
    async with harness.worker(max_lag_s=4.0, drain_s=0.0):
        await harness.announce("call-1")
        await harness.play("call-1", sound[: 25 * WORD], end=False)
        await harness.until("call-1", TurnUpdate)
        stt.cut_all()
        await harness.play("call-1", sound[25 * WORD : 38 * WORD], end=False)
    async with harness.worker(max_lag_s=4.0):
        await harness.play("call-1", sound[38 * WORD :])
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(50))
    assert kinds(events).count("turn.start") == 1
    assert "audio.gap" not in kinds(events)


async def test_permits_outlast_a_redis_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first worker to reconnect must not take the permits of workers that could not renew."""
    monkeypatch.setattr(permits, "RENEW_INTERVAL_S", 0.1)
    monkeypatch.setattr(permits, "PERMIT_TTL_S", 1.0)
    keys = Keys("stt")
    async with (
        EmbeddedRedis.start(append_only=True) as server,
        connect(server.url) as redis,
        anyio.create_task_group() as tasks,
    ):
        health = RedisHealth(), RedisHealth()
        one, two = (ConnectionPermits(redis, each, keys, 2) for each in health)
        await one.acquire(Permit("0:a", "1-0", 1))
        await two.acquire(Permit("0:b", "2-0", 1))
        before = await redis.zrange(keys.gate, 0, -1, withscores=True)
        tasks.start_soon(one.run)
        tasks.start_soon(two.run)
        await anyio.sleep(1.5 * permits.PERMIT_TTL_S)
        await server.kill()
        await anyio.sleep(1.5 * permits.PERMIT_TTL_S)
        await server.restart()
        await eventually(lambda: all(each.up for each in health), "both to reach Redis")
        assert await redis.zrange(keys.gate, 0, -1, withscores=True) == before
        tasks.cancel_scope.cancel()
