"""Who owns a session while Redis loses what says so, or says so late."""

import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas.keys import GROUP, RELEASED
from schemas.turns import SessionStarted, TurnUpdate
from tests.stage import PCM16, Stage, check_order, kinds, words
from tests.users import GuardedRedis
from tests.waiting import PATIENCE_S, eventually, no_longer
from tests.watchers import seen_alive
from worker.bus.intake import Claim, Intake, Owned, Ownership
from worker.local.engines.script import hush, say
from worker.local.server.server import TurnsServer

Break = Callable[[Redis, str, str], Awaitable[Any]]
LEASE_S = 2.0
LOST: dict[str, Break] = {
    "trimmed": lambda redis, sessions, _: redis.xtrim(sessions, maxlen=0, approximate=False),
    "deleted": lambda redis, sessions, entry: redis.xdel(sessions, entry),
    "its group destroyed": lambda redis, sessions, _: redis.xgroup_destroy(sessions, GROUP),
}
"""Ways to lose an entry of the sessions stream, or who owns it."""


async def _pending(redis: Redis, sessions: str) -> dict[str, str]:
    """Return the owner of each entry there is."""
    rows: Any = await redis.xpending_range(sessions, GROUP, "-", "+", count=10)
    entries: Any = await redis.xrange(sessions)
    there = {entry for entry, _ in entries}
    return {
        row["message_id"].decode(): row["consumer"].decode()
        for row in rows
        if row["message_id"] in there
    }


@pytest.mark.parametrize("lost", LOST)
async def test_an_entry_lost_inside_a_turn_is_put_back(stage: Stage, lost: str) -> None:
    sessions = f"{stage.prefix}:sessions"
    async with stage.worker() as worker:
        entry = await stage.announce("call-1")
        await stage.play("call-1", say([1, 2], PCM16), end=False)
        await stage.until("call-1", TurnUpdate, 2)
        await LOST[lost](stage.redis, sessions, entry)
        me = worker.host.intake.consumer

        async def put_back() -> bool:
            groups: Any = await stage.redis.xinfo_groups(sessions)
            return bool(groups) and [*(await _pending(stage.redis, sessions)).values()] == [me]

        await eventually(put_back, "the session to be announced, and ours, again")
        await stage.play("call-1", say([3], PCM16) + hush(900, PCM16), pause_s=0)
        events = (await stage.until_ended("call-1"))["call-1"]
        await no_longer(lambda: stage.redis.xlen(sessions), "the entry")
    check_order(events)
    assert words(events) == [1, 2, 3]
    assert kinds(events).count("session.started") == 1
    assert {event.run for event in events} == {entry}


async def test_an_entry_lost_and_its_owner_killed(stage: Stage, tmp_path: Path) -> None:
    """Before its owner can put it back: nothing on the sessions stream names the session."""
    lease = {"lease_ms": "30000"}
    async with stage.worker_process("one", tmp_path / "one", **lease) as first:
        entry = await stage.announce("call-1")
        await stage.until("call-1", SessionStarted)
        async with stage.worker_process("two", tmp_path / "two", **lease):
            await seen_alive([stage.redis], stage.prefix, 2)
            await stage.play("call-1", say([1, 2], PCM16), end=False)
            await stage.until("call-1", TurnUpdate, 2)
            first.send_signal(signal.SIGSTOP)
            await stage.redis.xdel(f"{stage.prefix}:sessions", entry)
            first.send_signal(signal.SIGKILL)
            await stage.play("call-1", say([3], PCM16) + hush(900, PCM16), pause_s=0)
            events = (await stage.until_ended("call-1"))["call-1"]
            await no_longer(lambda: stage.redis.xlen(f"{stage.prefix}:sessions"), "the entry")
    check_order(events)
    assert words(events) == [1, 2, 3]
    assert kinds(events).count("session.started") == 1
    assert {event.run for event in events} == {entry}
    assert events[-1].connection == 2


async def test_an_owner_that_wakes_puts_nothing_back(stage: Stage, tmp_path: Path) -> None:
    """Its entry was deleted while it was paused, and another runs the session by a new one."""
    sessions, lease = f"{stage.prefix}:sessions", {"lease_ms": "2000"}
    async with stage.worker_process("one", tmp_path / "one", **lease) as first:
        entry = await stage.announce("call-1")
        await stage.play("call-1", say([1, 2], PCM16), end=False)
        await stage.until("call-1", TurnUpdate, 2)
        async with stage.worker_process("two", tmp_path / "two", **lease):
            first.send_signal(signal.SIGSTOP)
            await stage.redis.xdel(sessions, entry)

            def taken() -> bool:
                return "session taken" in (tmp_path / "two").read_text()

            await eventually(taken, "the second worker")
            first.send_signal(signal.SIGCONT)
            await eventually(lambda: "let go" in (tmp_path / "one").read_text(), "the first")
            assert await stage.redis.xlen(sessions) == 1
            await stage.play("call-1", say([3], PCM16) + hush(900, PCM16), pause_s=0)
            events = (await stage.until_ended("call-1"))["call-1"]
            await no_longer(lambda: stage.redis.xlen(sessions), "the entry")
    check_order(events)
    assert words(events) == [1, 2, 3]
    assert events[-1].connection == 2
    assert await stage.dead() == []


async def test_a_claim_that_outlives_a_drain_runs_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would hand the session on any more."""
    claim, begun, go_on = Intake.claim, anyio.Event(), anyio.Event()

    async def wait(intake: Intake, owned: Owned, *rest: Any) -> Claim:
        if intake.consumer.startswith("one"):
            begun.set()
            await go_on.wait()
        return await claim(intake, owned, *rest)

    monkeypatch.setattr(Intake, "claim", wait)
    async with stage.worker(worker_id="one", lease_ms=2_000, drain_s=0.1) as first:
        await stage.announce("call-1")
        await begun.wait()
        first.drain()
        await stage.append("call-1", audio=say([1], PCM16), end="1")
        async with stage.worker(worker_id="two", lease_ms=2_000):
            started = await stage.until("call-1", SessionStarted)
            go_on.set()
            events = (await stage.until_ended("call-1"))["call-1"]
        assert len(first.roster) == 0
    assert started.worker == "two"
    assert words(events) == [1]


async def test_one_that_cannot_be_put_back_costs_nobody_else(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = f"{stage.prefix}:sessions"
    put_back, refused = Intake.put_back, anyio.Event()

    async def refuse_once(intake: Intake, ownership: Ownership, after: str) -> bool:
        if ownership.session.session == "bad" and not refused.is_set():
            refused.set()
            raise ResponseError("too many results to unpack")
        await refused.wait()
        return await put_back(intake, ownership, after)

    monkeypatch.setattr(Intake, "put_back", refuse_once)
    calls = {"bad", "call-1", "call-2"}
    async with stage.worker() as worker:
        for call in calls:
            await stage.announce(call)
        await eventually(lambda: len(worker.roster) == len(calls), "the sessions")
        await stage.redis.xtrim(sessions, maxlen=0, approximate=False)

        async def announced() -> bool:
            entries: Any = await stage.redis.xrange(sessions)
            return {fields[b"session"].decode() for _, fields in entries} == calls

        await eventually(announced, "all of them to be put back")
        for call in calls:
            await stage.append(call, end="1")
        await stage.until_ended(*calls)
        await no_longer(lambda: stage.redis.xlen(sessions), "the entries")
    assert worker.host.stats.faults["tenure"] == 1


async def test_owners_speak_first_after_an_outage(stt: TurnsServer) -> None:
    """Idle times ran on meanwhile: whoever comes back first must not take all there is."""
    entry = {"session": "call-1", "encoding": PCM16.encoding, "sample_rate": PCM16.sample_rate}
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        Stage.open(server.url, "stt", stt.url) as stage,
        stage.worker(lease_ms=int(LEASE_S * 1000)) as worker,
    ):
        await eventually(lambda: stage.redis.exists("stt:workers"), "the worker")
        await server.kill()
        await no_longer(lambda: worker.health.up, "Redis")
        await server.restart()
        await eventually(lambda: worker.health.up, "Redis")
        up_since = worker.health.since
        async with stage.redis.pipeline() as other:  # one that was not heard of for an hour
            other.xadd("stt:sessions", dict[Any, Any](entry), id="1-1")
            other.xreadgroup(GROUP, "other", {"stt:sessions": ">"})
            other.xclaim("stt:sessions", GROUP, "other", 0, ["1-1"], idle=3_600_000)
            await other.execute()
        takeovers = worker.host.stats.takeovers
        await eventually(lambda: takeovers["silent"], "the takeover")
        assert time.monotonic() - up_since >= LEASE_S, "it was taken over too soon"
        await stage.append("call-1", end="1")
        await stage.until_ended("call-1")


async def test_owners_speak_first_whatever_met_the_outage(
    stt: TurnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A takeover that was tried all the time must not go by what it knew before."""

    async def nothing_new(intake: Intake, at_most: int, block_ms: int) -> list[Owned]:
        await anyio.sleep(0.001)
        return []

    monkeypatch.setattr(Intake, "read_new", nothing_new)
    entry = {"session": "call-1", "encoding": PCM16.encoding, "sample_rate": PCM16.sample_rate}
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        Stage.open(server.url, "stt", stt.url) as stage,
        stage.worker(lease_ms=int(LEASE_S * 1000)) as worker,
    ):
        await eventually(lambda: worker.health.up_for_s > LEASE_S, "a lease of good health")
        await stage.redis.xadd("stt:sessions", dict[Any, Any](entry))
        await stage.redis.xreadgroup(GROUP, "other", {"stt:sessions": ">"})
        await server.kill()
        await no_longer(lambda: worker.health.up, "Redis")
        await anyio.sleep(LEASE_S)
        await server.restart()
        takeovers = worker.host.stats.takeovers
        await eventually(lambda: takeovers["silent"], "the takeover")
        assert worker.health.up_for_s >= LEASE_S, "it was taken over too soon"
        await stage.append("call-1", end="1")
        await stage.until_ended("call-1")


async def test_an_owner_that_knows_nothing_of_its_successor_is_fenced(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own commits tell it, for its heartbeat comes too late to."""
    monkeypatch.setattr("worker.service.HEARTBEAT_S", 3_600.0)
    sessions = f"{stage.prefix}:sessions"
    async with stage.worker(max_sessions=1, lease_ms=600_000) as first:
        entry = await stage.announce("call-1")
        await stage.until("call-1", SessionStarted)
        await stage.play("call-1", say([1, 2], PCM16), end=False)
        await stage.until("call-1", TurnUpdate, 2)
        async with stage.worker(worker_id="two", lease_ms=600_000) as second:
            await stage.redis.xclaim(sessions, GROUP, RELEASED, 0, [entry], justid=True)
            await eventually(lambda: len(second.roster), "the takeover")
            await stage.play("call-1", say([3, 4], PCM16))
            events = (await stage.until_ended("call-1"))["call-1"]
            await no_longer(lambda: len(first.roster), "the first's session")
    check_order(events)
    assert words(events) == [1, 2, 3, 4]
    assert first.host.stats.commits["fenced"] == 1
    assert first.host.stats.commits["gap"] == second.host.stats.commits["fenced"] == 0


async def test_a_session_that_is_over_is_not_given_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker is stopped between its last event and the removal of its entry."""
    settle, stopping = Intake.settle, anyio.Event()

    async def later(intake: Intake, entry: str) -> None:
        await stopping.wait()
        await anyio.sleep(0.2)
        await settle(intake, entry)

    monkeypatch.setattr(Intake, "settle", later)
    monkeypatch.setattr("worker.roster.GIVE_BACK_GRACE_S", PATIENCE_S)
    async with stage.worker(drain_s=0.0) as worker:
        await stage.announce("call-1")
        await stage.play("call-1", say([1], PCM16), pause_s=0)
        await stage.until_ended("call-1")
        assert len(worker.roster) == 1
        worker.stop()
        stopping.set()
    assert await stage.redis.xlen(f"{stage.prefix}:sessions") == 0


@pytest.mark.parametrize("lost", LOST)
async def test_an_entry_lost_just_before_it_is_given_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """No heartbeat comes in between."""
    monkeypatch.setattr("worker.service.HEARTBEAT_S", 3_600.0)
    sessions = f"{stage.prefix}:sessions"
    async with stage.worker(drain_s=0.0):
        entry = await stage.announce("call-1")
        await stage.play("call-1", say([1, 2], PCM16), end=False)
        await stage.until("call-1", TurnUpdate, 2)
        await LOST[lost](stage.redis, sessions, entry)
    async with stage.worker(worker_id="two"):
        await stage.play("call-1", say([3], PCM16) + hush(900, PCM16), pause_s=0)
        events = (await stage.until_ended("call-1"))["call-1"]
        await no_longer(lambda: stage.redis.xlen(sessions), "the entry")
    check_order(events)
    assert words(events) == [1, 2, 3]
    assert {event.run for event in events} == {entry}
