"""A session outlives its socket, its worker, and what it stands on."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from schemas.keys import GROUP, RELEASED, Keys
from schemas.turns import SessionError, SessionStarted, TurnEnd, TurnStart, TurnUpdate
from tests.stage import KEY, PCM16, Stage, check_order, kinds, words
from tests.users import GuardedRedis
from tests.waiting import PATIENCE_S, eventually, no_longer
from tests.watchers import seen_alive
from worker.bus.census import workers
from worker.local.chaos.proxy import Proxy
from worker.local.engines.script import ScriptEngine, ScriptOptions, hush, say
from worker.local.server.server import TurnsServer
from worker.local.server.settings import ServerSettings


def _speech(turns: int, pause_ms: float = 900) -> bytes:
    """Say three words a turn."""
    return b"".join(
        say(range(at * 3, at * 3 + 3), PCM16) + hush(pause_ms, PCM16) for at in range(turns)
    )


async def _heard(stt: TurnsServer, sound_starts: int) -> None:
    """Wait until the service has heard a turn's first sound, so many ms into a call, and no more.

    It answers later, by its latency.
    """
    first = (sound_starts + 100) * 32

    await eventually(
        lambda: any(each.audio_bytes >= first for each in stt.connections), "the first sound"
    )


async def test_a_socket_cut_inside_a_turn(stage: Stage) -> None:
    async with stage.worker() as worker, anyio.create_task_group() as tasks:
        await stage.announce("call-1")
        tasks.start_soon(stage.play, "call-1", _speech(2))
        await stage.until("call-1", TurnUpdate, 2)
        (session,) = worker.roster
        assert session._conversation is not None
        session._conversation.stream.socket.abort("cut by the test")
        events = (await stage.until_ended("call-1"))["call-1"]
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
async def test_killed_inside_a_turn(
    stage: Stage, tmp_path: Path, noticed: str, second: str
) -> None:
    """It held the only permit for a socket: who waits for one gets it, too."""
    limits = {"stt_max_connections": "1", "lease_ms": "30000"}
    if noticed == "by its lease":
        limits["lease_ms"] = "2000"
    async with (
        stage.worker_process("one", tmp_path / "one", **limits) as first,
        anyio.create_task_group() as tasks,
    ):
        await stage.announce("call-1")
        await stage.until("call-1", SessionStarted)
        if noticed == "by its lease":
            # The second comes when the first speaks no more, and so has never seen it alive.
            tasks.start_soon(stage.play, "call-1", _speech(4))
            await stage.until("call-1", TurnUpdate, 4)
            first.send_signal(signal.SIGKILL)
        async with stage.worker_process(second, tmp_path / "two", **limits):
            if noticed == "at once":
                await seen_alive([stage.redis], stage.prefix, 2)
                tasks.start_soon(stage.play, "call-1", _speech(4))
                await stage.until("call-1", TurnUpdate, 4)
                first.send_signal(signal.SIGKILL)
            await stage.announce("call-2")
            await stage.play("call-2", say([99], PCM16), pause_s=0)
            both = await stage.until_ended("call-1", "call-2")
    events = both["call-1"]
    check_order(events)
    assert words(events) == list(range(12))
    assert kinds(events).count("session.started") == 1
    assert events[-1].connection == 2
    assert "session.error" not in kinds(events), "it has its permit still, and does not wait"
    assert words(both["call-2"]) == [99]
    assert await stage.redis.zcard(f"{stage.prefix}:gate") == 0
    assert ("is dead" in (tmp_path / "two").read_text()) is (noticed == "at once")
    assert await stage.redis.exists(f"{stage.prefix}:workers") == 0, "the dead one is forgotten"


async def test_stopped_inside_a_turn(stage: Stage, tmp_path: Path) -> None:
    async with (
        stage.worker_process("one", tmp_path / "one") as first,
        anyio.create_task_group() as tasks,
    ):
        await stage.announce("call-1")
        await stage.until("call-1", SessionStarted)
        async with stage.worker_process("two", tmp_path / "two"):
            tasks.start_soon(stage.play, "call-1", _speech(4))
            await stage.until("call-1", TurnStart, 2)
            first.send_signal(signal.SIGTERM)
            events = (await stage.until_ended("call-1"))["call-1"]
            assert await first.wait() == 0
    check_order(events)
    assert words(events) == list(range(12))
    assert events[-1].connection == 2
    assert {event.connection for event in events if getattr(event, "turn", None) == 1} == {1}, (
        "whoever is told to stop inside a turn ends the turn itself"
    )
    assert await stage.redis.exists(f"{stage.prefix}:workers") == 0


async def test_what_is_under_way_goes_before_what_is_new(stage: Stage) -> None:
    """Where there is no room for all, those should not wait longest in which somebody speaks."""
    sessions = f"{stage.prefix}:sessions"
    await stage.redis.xgroup_create(sessions, GROUP, id="0", mkstream=True)
    calls = ("under-way", "new-1", "new-2")
    for call in calls:
        await stage.announce(call)
        await stage.append(call, end="1")
        if call == "under-way":
            await stage.redis.xreadgroup(GROUP, RELEASED, {sessions: ">"})
    async with stage.worker(max_sessions=1):
        events = await stage.until_ended(*calls)
    assert min(calls, key=lambda call: events[call][0].at) == "under-way"


async def test_what_waits_for_a_socket_is_handed_on_at_once(stage: Stage, stt: TurnsServer) -> None:
    """Inside a turn too: the next worker gets it no later."""
    async with stage.worker(drain_s=600.0) as first, anyio.create_task_group() as tasks:
        await stage.announce("call-1")
        tasks.start_soon(stage.play, "call-1", _speech(2))
        await stage.until("call-1", TurnUpdate, 2)
        async with stt.outage():
            stt.cut_all()
            await stage.until("call-1", SessionError)
            first.stop()
            await no_longer(lambda: len(first.roster), "a session in the roster")
        async with stage.worker(worker_id="two"):
            events = (await stage.until_ended("call-1"))["call-1"]
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
async def test_stopped_while_redis_is_away(
    stt: TurnsServer, tmp_path: Path, away: str, signals: int
) -> None:
    log = tmp_path / "one"
    async with (
        GuardedRedis.start() as server,
        Stage.open(server.url, "stt", stt.url) as stage,
    ):
        drain_s = "1" if signals == 1 else "600"
        async with stage.worker_process("one", log, drain_s=drain_s) as process:
            await stage.announce("call-1")
            await stage.play("call-1", say([0, 1], PCM16), end=False)
            await stage.until("call-1", TurnStart)
            if away == "killed":
                await server.kill()
            else:
                os.kill(server.pid, signal.SIGSTOP)
            await eventually(
                lambda: "Redis is not available" in log.read_text(), "the outage to be told"
            )
            with anyio.fail_after(PATIENCE_S):
                process.send_signal(signal.SIGTERM)
                if signals == 2:
                    # Not before the first is taken: of two that wait, one would be forgotten.
                    await eventually(lambda: "handing on" in log.read_text(), "the first signal")
                    process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
        if away == "killed":
            await server.restart()
        else:
            os.kill(server.pid, signal.SIGCONT)
    assert "not stopped within the drain budget" not in log.read_text()


async def test_a_paused_worker_wakes_up_fenced(stage: Stage, tmp_path: Path) -> None:
    async with (
        stage.worker_process("one", tmp_path / "one", lease_ms="2000") as first,
        anyio.create_task_group() as tasks,
    ):
        await stage.announce("call-1")
        tasks.start_soon(stage.play, "call-1", _speech(4))
        await stage.until("call-1", TurnUpdate, 2)
        async with stage.worker_process("two", tmp_path / "two", lease_ms="2000"):
            first.send_signal(signal.SIGSTOP)
            await stage.until("call-1", TurnStart, 3)
            first.send_signal(signal.SIGCONT)
            events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(12))


async def test_a_worker_paused_at_the_start_of_a_turn_knows_where_it_ended(
    stage: Stage, tmp_path: Path
) -> None:
    """What the service says meanwhile is not late, or a pause inside the turn would be its end."""
    slow = ScriptEngine(ScriptOptions(latency_ms=200))
    async with (
        TurnsServer.serve(ServerSettings(port=0), slow) as late_stt,
        stage.worker_process("one", tmp_path / "one", lease_ms="2000", stt_url=late_stt.url) as one,
        anyio.create_task_group() as tasks,
    ):
        sound = hush(300, PCM16) + say([0, 1], PCM16) + hush(380, PCM16)
        sound += say([2, 3], PCM16) + hush(2_500, PCM16)
        await stage.announce("call-1")
        await stage.until("call-1", SessionStarted)
        tasks.start_soon(stage.play, "call-1", sound)
        await _heard(late_stt, sound_starts=300)
        one.send_signal(signal.SIGSTOP)
        await anyio.sleep(1.0)
        one.send_signal(signal.SIGCONT)
        await stage.until("call-1", TurnEnd)
        one.send_signal(signal.SIGKILL)
        async with stage.worker_process("two", tmp_path / "two", lease_ms="2000"):
            events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(4))


async def test_a_socket_held_up_at_the_start_of_a_turn_is_not_late_at_its_end(
    stage: Stage, stt: TurnsServer
) -> None:
    sound = hush(300, PCM16) + say([0, 1, 2], PCM16) + hush(380, PCM16)
    sound += say([3, 4], PCM16) + hush(1_500, PCM16)
    async with (
        Proxy.open(lambda: stt.port) as way,
        stage.worker(stt_url=stt.url.replace(str(stt.port), str(way.port))) as worker,
        anyio.create_task_group() as tasks,
    ):
        await stage.announce("call-1")
        tasks.start_soon(stage.play, "call-1", sound)
        await _heard(stt, sound_starts=300)
        for link in way.links:
            link.stall()
        await anyio.sleep(0.8)
        for link in way.links:
            link.flow()
        await stage.until("call-1", TurnEnd)
        (session,) = worker.roster
        assert session._conversation is not None
        session._conversation.stream.socket.abort("cut by the test")
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(5))


async def test_redis_is_not_there_yet(stt: TurnsServer) -> None:
    async with (
        GuardedRedis.start(append_only=True) as server,
        Stage.open(server.url, "stt", stt.url) as stage,
    ):
        await server.kill()
        async with stage.worker() as worker:
            await no_longer(lambda: worker.health.up, "Redis")
            assert worker.readiness.reasons[0].startswith("redis: ")
            await server.restart()
            await stage.announce("call-1")
            await stage.play("call-1", say([1], PCM16), pause_s=0)
            events = (await stage.until_ended("call-1"))["call-1"]
            assert worker.readiness.ready
    assert words(events) == [1]


async def test_redis_restarts_inside_a_turn(stt: TurnsServer) -> None:
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        Stage.open(server.url, "stt", stt.url) as stage,
        stage.worker(),
    ):
        await stage.announce("call-1")
        await stage.play("call-1", say([0, 1, 2], PCM16), end=False)
        await server.kill()
        await anyio.sleep(1.0)
        await server.restart()
        await stage.play("call-1", say([3, 4], PCM16))
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(5))


async def test_the_service_is_not_there_yet(stage: Stage, stt: TurnsServer) -> None:
    await stt.stop()
    async with stage.worker() as worker:
        await stage.announce("call-1")
        await stage.play("call-1", say([1, 2], PCM16), pause_s=0)
        error = await stage.until("call-1", SessionError)
        assert isinstance(error, SessionError)
        assert (error.code, error.fatal) == ("stt_unavailable", False)
        assert worker.readiness.ready, "an outage of the service is no reason to lose the pod"
        settings = ServerSettings(port=stt.port)
        async with TurnsServer.serve(settings, ScriptEngine()):
            events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]
    assert kinds(events).count("session.error") == 1


@pytest.mark.parametrize("status", [401, pytest.param(403, marks=pytest.mark.slow)])
async def test_a_refused_key_loses_no_session(
    stage: Stage, stt: TurnsServer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """And its worker takes no other: there may be one with a better key."""
    if status != 401:
        stt.faults.set(f"http={status}")
    async with stage.worker(key="sk_wrong" if status == 401 else KEY) as worker:
        entry = await stage.announce("call-1")
        await stage.play("call-1", say([1, 2], PCM16), pause_s=0)
        await stage.until("call-1", SessionError)
        assert not worker.readiness.ready
        assert worker.readiness.reasons[0].startswith(f"stt: HTTP {status}")
        await stage.announce("call-2")
        announced = time.time()

        async def has_had_time() -> bool:
            (record,) = (await workers(stage.redis, Keys(stage.prefix))).values()
            return record.state == "unready" and record.heartbeat > announced

        await eventually(has_had_time, "another heartbeat")
        pending: Any = await stage.redis.xpending_range(
            f"{stage.prefix}:sessions", GROUP, "-", "+", count=10
        )
        assert [each["message_id"].decode() for each in pending] == [entry]
        worker.stop()
        await no_longer(lambda: len(worker.roster), "sessions in the roster")
    assert len([line for line in caplog.messages if "refuses the API key" in line]) == 1
    assert "sk_" not in caplog.text
    stt.faults.set()
    async with stage.worker():
        await stage.append("call-2", end="1")
        events = await stage.until_ended("call-1", "call-2")
    check_order(events["call-1"])
    assert words(events["call-1"]) == [1, 2]


async def test_redis_loses_everything(stt: TurnsServer) -> None:
    async with (
        GuardedRedis.start() as server,
        Stage.open(server.url, "stt", stt.url) as stage,
        stage.worker() as worker,
    ):
        for number in range(3):
            await stage.announce(f"call-{number}")
        await eventually(lambda: len(worker.roster) == 3, "three sessions in the roster")
        await stage.redis.flushall()
        for number in range(3):
            await stage.play(f"call-{number}", say([number], PCM16), pause_s=0)
        events = await stage.until_ended("call-0", "call-1", "call-2")
        await no_longer(lambda: len(worker.roster), "sessions in the roster")
    for number in range(3):
        assert words(events[f"call-{number}"]) == [number], "started afresh"
