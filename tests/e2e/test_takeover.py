"""A session survives the loss of its socket, its worker, Redis and the provider."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from schemas.keys import GROUP, RELEASED, Keys
from schemas.turns import SessionError, SessionStarted, TurnEnd, TurnStart, TurnUpdate
from tests.support.acl import GuardedRedis
from tests.support.harness import KEY, PCM16, Harness, check_order, kinds, words
from tests.support.polling import PATIENCE_S, eventually, no_longer
from tests.support.watchers import seen_alive
from worker.bench.proxy import Proxy
from worker.bus.registry import read_workers
from worker.local.emulator.engines.script import (
    ScriptEngine,
    ScriptOptions,
    synthesize_silence,
    synthesize_words,
)
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings


def _speech(turns: int, pause_ms: float = 900) -> bytes:
    """Generate three words a turn."""
    return b"".join(
        synthesize_words(range(at * 3, at * 3 + 3), PCM16) + synthesize_silence(pause_ms, PCM16)
        for at in range(turns)
    )


async def _received(stt: TurnsServer, sound_starts: int) -> None:
    """Wait until the provider received exactly the first sound of a turn, `ms` into the call.

    The provider answers later, after its latency.
    """
    first = (sound_starts + 100) * 32

    await eventually(
        lambda: any(each.audio_bytes >= first for each in stt.connections), "the first sound"
    )


async def test_socket_lost_inside_a_turn_loses_nothing(harness: Harness) -> None:
    async with harness.worker() as worker, anyio.create_task_group() as tasks:
        await harness.announce("call-1")
        tasks.start_soon(harness.play, "call-1", _speech(2))
        await harness.until("call-1", TurnUpdate, 2)
        (session,) = worker.running
        assert session._connection is not None
        session._connection.stream.socket.abort("cut by the test")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(6))
    assert events[-1].connection == 2


@pytest.mark.parametrize(
    ("noticed", "second"),
    [
        ("by its lease", "two"),
        ("at once", "one"),
        pytest.param("at once", "two", marks=pytest.mark.slow),
    ],
)
async def test_sigkill_inside_a_turn_loses_nothing(
    harness: Harness, tmp_path: Path, noticed: str, second: str
) -> None:
    """The killed worker held the only connection permit, so its waiter must get the permit too."""
    limits = {"stt_max_connections": "1", "lease_ms": "30000"}
    if noticed == "by its lease":
        limits["lease_ms"] = "2000"
    async with (
        harness.worker_process("one", tmp_path / "one", **limits) as first,
        anyio.create_task_group() as tasks,
    ):
        await harness.announce("call-1")
        await harness.until("call-1", SessionStarted)
        if noticed == "by its lease":
            # The second worker starts after the first has died, and so has never seen it alive.
            tasks.start_soon(harness.play, "call-1", _speech(4))
            await harness.until("call-1", TurnUpdate, 4)
            first.send_signal(signal.SIGKILL)
        async with harness.worker_process(second, tmp_path / "two", **limits):
            if noticed == "at once":
                await seen_alive([harness.redis], harness.prefix, 2)
                tasks.start_soon(harness.play, "call-1", _speech(4))
                await harness.until("call-1", TurnUpdate, 4)
                first.send_signal(signal.SIGKILL)
            await harness.announce("call-2")
            await harness.play("call-2", synthesize_words([99], PCM16), pause_s=0)
            both = await harness.until_ended("call-1", "call-2")
    events = both["call-1"]
    check_order(events)
    assert words(events) == list(range(12))
    assert kinds(events).count("session.started") == 1
    assert events[-1].connection == 2
    assert "session.error" not in kinds(events), (
        "the session still has its permit and does not wait"
    )
    assert words(both["call-2"]) == [99]
    assert await harness.redis.zcard(f"{harness.prefix}:gate") == 0
    assert ("is dead" in (tmp_path / "two").read_text()) is (noticed == "at once")
    assert await harness.redis.exists(f"{harness.prefix}:workers") == 0, (
        "the dead worker's record is deleted"
    )


async def test_sigterm_inside_a_turn_releases_the_session(harness: Harness, tmp_path: Path) -> None:
    async with (
        harness.worker_process("one", tmp_path / "one") as first,
        anyio.create_task_group() as tasks,
    ):
        await harness.announce("call-1")
        await harness.until("call-1", SessionStarted)
        async with harness.worker_process("two", tmp_path / "two"):
            tasks.start_soon(harness.play, "call-1", _speech(4))
            await harness.until("call-1", TurnStart, 2)
            first.send_signal(signal.SIGTERM)
            events = (await harness.until_ended("call-1"))["call-1"]
            assert await first.wait() == 0
    check_order(events)
    assert words(events) == list(range(12))
    assert events[-1].connection == 2
    assert {event.connection for event in events if getattr(event, "turn", None) == 1} == {1}, (
        "a worker stopped inside a turn finishes the turn itself"
    )
    assert await harness.redis.exists(f"{harness.prefix}:workers") == 0


async def test_open_turns_are_taken_over_before_new_sessions(harness: Harness) -> None:
    """Without room for all sessions, those with an open turn should wait the least."""
    sessions = f"{harness.prefix}:sessions"
    await harness.redis.xgroup_create(sessions, GROUP, id="0", mkstream=True)
    calls = ("under-way", "new-1", "new-2")
    for call in calls:
        await harness.announce(call)
        await harness.append(call, end="1")
        if call == "under-way":
            await harness.redis.xreadgroup(GROUP, RELEASED, {sessions: ">"})
    async with harness.worker(max_sessions=1):
        events = await harness.until_ended(*calls)
    assert min(calls, key=lambda call: events[call][0].at) == "under-way"


async def test_session_waiting_for_a_socket_is_released_at_once(
    harness: Harness, stt: TurnsServer
) -> None:
    """This also holds inside a turn: a later release does not help the next worker."""
    async with harness.worker(drain_s=600.0) as first, anyio.create_task_group() as tasks:
        await harness.announce("call-1")
        tasks.start_soon(harness.play, "call-1", _speech(2))
        await harness.until("call-1", TurnUpdate, 2)
        async with stt.outage():
            stt.cut_all()
            await harness.until("call-1", SessionError)
            first.stop()
            await no_longer(lambda: len(first.running), "a running session")
        async with harness.worker(worker_id="two"):
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(6))


@pytest.mark.parametrize(
    ("away", "signals"),
    [
        ("killed", 1),
        pytest.param("frozen", 2, marks=pytest.mark.slow),
        pytest.param("killed", 2, marks=pytest.mark.slow),
    ],
)
async def test_sigterm_during_a_redis_outage(
    stt: TurnsServer, tmp_path: Path, away: str, signals: int
) -> None:
    log = tmp_path / "one"
    async with (
        GuardedRedis.start() as server,
        Harness.open(server.url, "stt", stt.url) as harness,
    ):
        drain_s = "1" if signals == 1 else "600"
        async with harness.worker_process("one", log, drain_s=drain_s) as process:
            await harness.announce("call-1")
            await harness.play("call-1", synthesize_words([0, 1], PCM16), end=False)
            await harness.until("call-1", TurnStart)
            if away == "killed":
                await server.kill()
            else:
                os.kill(server.pid, signal.SIGSTOP)
            await eventually(
                lambda: "Redis is not available" in log.read_text(), "the outage to be logged"
            )
            with anyio.fail_after(PATIENCE_S):
                process.send_signal(signal.SIGTERM)
                if signals == 2:
                    # Only after the first is taken: of two waiting tasks, one would be forgotten.
                    await eventually(lambda: "releasing" in log.read_text(), "the first signal")
                    process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
        if away == "killed":
            await server.restart()
        else:
            os.kill(server.pid, signal.SIGCONT)
    assert "not stopped within the drain timeout" not in log.read_text()


async def test_paused_worker_resumes_and_is_fenced(harness: Harness, tmp_path: Path) -> None:
    async with (
        harness.worker_process("one", tmp_path / "one", lease_ms="2000") as first,
        anyio.create_task_group() as tasks,
    ):
        await harness.announce("call-1")
        tasks.start_soon(harness.play, "call-1", _speech(4))
        await harness.until("call-1", TurnUpdate, 2)
        async with harness.worker_process("two", tmp_path / "two", lease_ms="2000"):
            first.send_signal(signal.SIGSTOP)
            await harness.until("call-1", TurnStart, 3)
            first.send_signal(signal.SIGCONT)
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(12))


async def test_worker_paused_at_a_turn_start_finds_its_end(
    harness: Harness, tmp_path: Path
) -> None:
    """Messages received during the pause are not lag; else a pause inside the turn would end it."""
    slow = ScriptEngine(ScriptOptions(latency_ms=200))
    async with (
        TurnsServer.serve(ServerSettings(port=0), slow) as late_stt,
        harness.worker_process(
            "one", tmp_path / "one", lease_ms="2000", stt_url=late_stt.url
        ) as one,
        anyio.create_task_group() as tasks,
    ):
        sound = (
            synthesize_silence(300, PCM16)
            + synthesize_words([0, 1], PCM16)
            + synthesize_silence(380, PCM16)
        )
        sound += synthesize_words([2, 3], PCM16) + synthesize_silence(2_500, PCM16)
        await harness.announce("call-1")
        await harness.until("call-1", SessionStarted)
        tasks.start_soon(harness.play, "call-1", sound)
        await _received(late_stt, sound_starts=300)
        one.send_signal(signal.SIGSTOP)
        await anyio.sleep(1.0)
        one.send_signal(signal.SIGCONT)
        await harness.until("call-1", TurnEnd)
        one.send_signal(signal.SIGKILL)
        async with harness.worker_process("two", tmp_path / "two", lease_ms="2000"):
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(4))


async def test_socket_blocked_at_a_turn_start_adds_no_lag_at_its_end(
    harness: Harness, stt: TurnsServer
) -> None:
    sound = (
        synthesize_silence(300, PCM16)
        + synthesize_words([0, 1, 2], PCM16)
        + synthesize_silence(380, PCM16)
    )
    sound += synthesize_words([3, 4], PCM16) + synthesize_silence(1_500, PCM16)
    async with (
        Proxy.open(lambda: stt.port) as way,
        harness.worker(stt_url=stt.url.replace(str(stt.port), str(way.port))) as worker,
        anyio.create_task_group() as tasks,
    ):
        await harness.announce("call-1")
        tasks.start_soon(harness.play, "call-1", sound)
        await _received(stt, sound_starts=300)
        for link in way.links:
            link.stall()
        await anyio.sleep(0.8)
        for link in way.links:
            link.flow()
        await harness.until("call-1", TurnEnd)
        (session,) = worker.running
        assert session._connection is not None
        session._connection.stream.socket.abort("cut by the test")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(5))


async def test_worker_starts_before_redis(stt: TurnsServer) -> None:
    async with (
        GuardedRedis.start(append_only=True) as server,
        Harness.open(server.url, "stt", stt.url) as harness,
    ):
        await server.kill()
        async with harness.worker() as worker:
            await no_longer(lambda: worker.health.up, "Redis")
            assert worker.readiness.reasons[0].startswith("redis: ")
            await server.restart()
            await harness.announce("call-1")
            await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
            events = (await harness.until_ended("call-1"))["call-1"]
            assert worker.readiness.ready
    assert words(events) == [1]


async def test_redis_restarts_inside_a_turn(stt: TurnsServer) -> None:
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        Harness.open(server.url, "stt", stt.url) as harness,
        harness.worker(),
    ):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([0, 1, 2], PCM16), end=False)
        await server.kill()
        await anyio.sleep(1.0)
        await server.restart()
        await harness.play("call-1", synthesize_words([3, 4], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(5))


async def test_worker_starts_before_the_provider(harness: Harness, stt: TurnsServer) -> None:
    await stt.stop()
    async with harness.worker() as worker:
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1, 2], PCM16), pause_s=0)
        error = await harness.until("call-1", SessionError)
        assert isinstance(error, SessionError)
        assert (error.code, error.fatal) == ("stt_unavailable", False)
        assert worker.readiness.ready, "a provider outage must not restart the pod"
        settings = ServerSettings(port=stt.port)
        async with TurnsServer.serve(settings, ScriptEngine()):
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]
    assert kinds(events).count("session.error") == 1


@pytest.mark.parametrize("status", [401, pytest.param(403, marks=pytest.mark.slow)])
async def test_rejected_api_key_loses_no_session(
    harness: Harness, stt: TurnsServer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """The worker claims no other session, because another worker may have a valid key."""
    if status != 401:
        stt.faults.set(f"http={status}")
    async with harness.worker(key="sk_wrong" if status == 401 else KEY) as worker:
        entry = await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1, 2], PCM16), pause_s=0)
        await harness.until("call-1", SessionError)
        assert not worker.readiness.ready
        assert worker.readiness.reasons[0].startswith(f"stt: HTTP {status}")
        await harness.announce("call-2")
        announced = time.time()

        async def has_had_time() -> bool:
            (record,) = (await read_workers(harness.redis, Keys(harness.prefix))).values()
            return record.state == "unready" and record.heartbeat > announced

        await eventually(has_had_time, "another heartbeat")
        pending: Any = await harness.redis.xpending_range(
            f"{harness.prefix}:sessions", GROUP, "-", "+", count=10
        )
        assert [each["message_id"].decode() for each in pending] == [entry]
        worker.stop()
        await no_longer(lambda: len(worker.running), "sessions in the running")
    assert len([line for line in caplog.messages if "rejects the API key" in line]) == 1
    assert "sk_" not in caplog.text
    stt.faults.set()
    async with harness.worker():
        await harness.append("call-2", end="1")
        events = await harness.until_ended("call-1", "call-2")
    check_order(events["call-1"])
    assert words(events["call-1"]) == [1, 2]


async def test_redis_loses_all_data(stt: TurnsServer) -> None:
    async with (
        GuardedRedis.start() as server,
        Harness.open(server.url, "stt", stt.url) as harness,
        harness.worker() as worker,
    ):
        for number in range(3):
            await harness.announce(f"call-{number}")
        await eventually(lambda: len(worker.running) == 3, "three running sessions")
        await harness.redis.flushall()
        for number in range(3):
            await harness.play(f"call-{number}", synthesize_words([number], PCM16), pause_s=0)
        events = await harness.until_ended("call-0", "call-1", "call-2")
        await no_longer(lambda: len(worker.running), "running sessions")
    for number in range(3):
        assert words(events[f"call-{number}"]) == [number], "started again"
