"""Ownership of a session while Redis loses its records or returns them late."""

import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas.audio import Fields
from schemas.keys import GROUP, RELEASED
from schemas.turns import SessionStarted, TurnUpdate
from tests.support.acl import GuardedRedis
from tests.support.harness import PCM16, Harness, check_order, kinds, words
from tests.support.polling import PATIENCE_S, eventually, no_longer
from tests.support.watchers import seen_alive
from worker.bus.ownership import ClaimResult, OwnedEntry, SessionLeases
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer

Break = Callable[[Redis, str, str], Awaitable[Any]]
LEASE_S = 2.0
LOST: dict[str, Break] = {
    "trimmed": lambda redis, sessions, _: redis.xtrim(sessions, maxlen=0, approximate=False),
    "deleted": lambda redis, sessions, entry: redis.xdel(sessions, entry),
    "its group destroyed": lambda redis, sessions, _: redis.xgroup_destroy(sessions, GROUP),
}
"""Ways to lose an entry of the sessions stream, or its owner."""


async def _pending(redis: Redis, sessions: str) -> dict[str, str]:
    """Return the owner of each pending entry."""
    rows: Any = await redis.xpending_range(sessions, GROUP, "-", "+", count=10)
    entries: Any = await redis.xrange(sessions)
    there = {entry for entry, _ in entries}
    return {
        row["message_id"].decode(): row["consumer"].decode()
        for row in rows
        if row["message_id"] in there
    }


@pytest.mark.parametrize("lost", LOST)
async def test_entry_lost_inside_a_turn_is_restored(harness: Harness, lost: str) -> None:
    sessions = f"{harness.prefix}:sessions"
    async with harness.worker() as worker:
        entry = await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1, 2], PCM16), end=False)
        await harness.until("call-1", TurnUpdate, 2)
        await LOST[lost](harness.redis, sessions, entry)
        me = worker.context.leases.consumer

        async def restored() -> bool:
            groups: Any = await harness.redis.xinfo_groups(sessions)
            return bool(groups) and [*(await _pending(harness.redis, sessions)).values()] == [me]

        await eventually(restored, "the session to be announced and owned again")
        await harness.play(
            "call-1", synthesize_words([3], PCM16) + synthesize_silence(900, PCM16), pause_s=0
        )
        events = (await harness.until_ended("call-1"))["call-1"]
        await no_longer(lambda: harness.redis.xlen(sessions), "the entry")
    check_order(events)
    assert words(events) == [1, 2, 3]
    assert kinds(events).count("session.started") == 1
    assert {event.run for event in events} == {entry}


async def test_restored_entry_ends_the_earlier_run(harness: Harness) -> None:
    """Otherwise the session would have two sockets, until a heartbeat or a commit fails."""
    async with harness.worker() as worker:
        entry = await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1, 2], PCM16), end=False)
        await harness.until("call-1", TurnUpdate, 2)
        await harness.redis.xdel(f"{harness.prefix}:sessions", entry)

        def restored() -> bool:
            entries = {each.ownership.fence.entry_id for each in worker.running}
            return bool(entries - {entry})

        await eventually(restored, "the run of the restored entry")
        assert len(worker.running) == 1
        await harness.play("call-1", synthesize_silence(900, PCM16), pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]
    assert {event.run for event in events} == {entry}


async def test_entry_lost_and_its_owner_killed(harness: Harness, tmp_path: Path) -> None:
    """The owner cannot restore the entry, and no other entry names the session."""
    lease = {"lease_ms": "30000"}
    async with harness.worker_process("one", tmp_path / "one", **lease) as first:
        entry = await harness.announce("call-1")
        await harness.until("call-1", SessionStarted)
        async with harness.worker_process("two", tmp_path / "two", **lease):
            await seen_alive([harness.redis], harness.prefix, 2)
            await harness.play("call-1", synthesize_words([1, 2], PCM16), end=False)
            await harness.until("call-1", TurnUpdate, 2)
            first.send_signal(signal.SIGSTOP)
            await harness.redis.xdel(f"{harness.prefix}:sessions", entry)
            first.send_signal(signal.SIGKILL)
            await harness.play(
                "call-1", synthesize_words([3], PCM16) + synthesize_silence(900, PCM16), pause_s=0
            )
            events = (await harness.until_ended("call-1"))["call-1"]
            await no_longer(lambda: harness.redis.xlen(f"{harness.prefix}:sessions"), "the entry")
    check_order(events)
    assert words(events) == [1, 2, 3]
    assert kinds(events).count("session.started") == 1
    assert {event.run for event in events} == {entry}
    assert events[-1].connection == 2


async def test_resumed_owner_does_not_restore_a_taken_session(
    harness: Harness, tmp_path: Path
) -> None:
    """The entry is deleted while its owner is paused.

    Another worker runs the session by a new entry.
    """
    sessions, lease = f"{harness.prefix}:sessions", {"lease_ms": "2000"}
    async with harness.worker_process("one", tmp_path / "one", **lease) as first:
        entry = await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1, 2], PCM16), end=False)
        await harness.until("call-1", TurnUpdate, 2)
        async with harness.worker_process("two", tmp_path / "two", **lease):
            first.send_signal(signal.SIGSTOP)
            await harness.redis.xdel(sessions, entry)

            def taken() -> bool:
                return "session claimed (continues" in (tmp_path / "two").read_text()

            await eventually(taken, "the second worker")
            first.send_signal(signal.SIGCONT)
            await eventually(lambda: "lease lost" in (tmp_path / "one").read_text(), "the first")
            assert await harness.redis.xlen(sessions) == 1
            await harness.play(
                "call-1", synthesize_words([3], PCM16) + synthesize_silence(900, PCM16), pause_s=0
            )
            events = (await harness.until_ended("call-1"))["call-1"]
            await no_longer(lambda: harness.redis.xlen(sessions), "the entry")
    check_order(events)
    assert words(events) == [1, 2, 3]
    assert events[-1].connection == 2
    assert await harness.dead() == []


async def test_claim_that_outlives_a_drain_runs_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drained worker could no longer release the session."""
    claim, begun, go_on = SessionLeases.claim, anyio.Event(), anyio.Event()

    async def wait(intake: SessionLeases, owned: OwnedEntry, *rest: Any) -> ClaimResult:
        if intake.consumer.startswith("one"):
            begun.set()
            await go_on.wait()
        return await claim(intake, owned, *rest)

    monkeypatch.setattr(SessionLeases, "claim", wait)
    async with harness.worker(worker_id="one", lease_ms=2_000, drain_s=0.1) as first:
        await harness.announce("call-1")
        await begun.wait()
        first.drain()
        await harness.append("call-1", audio=synthesize_words([1], PCM16), end="1")
        async with harness.worker(worker_id="two", lease_ms=2_000):
            started = await harness.until("call-1", SessionStarted)
            go_on.set()
            events = (await harness.until_ended("call-1"))["call-1"]
        assert len(first.running) == 0
    assert started.worker == "two"
    assert words(events) == [1]


async def test_entry_that_cannot_be_restored_blocks_no_other(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = f"{harness.prefix}:sessions"
    restore_entry, refused = SessionLeases.restore_entry, anyio.Event()

    async def refuse_once(
        intake: SessionLeases, entry: str, run: str, fields: Fields, after: str
    ) -> bool:
        if fields[b"session"] == b"bad" and not refused.is_set():
            refused.set()
            raise ResponseError("too many results to unpack")
        await refused.wait()
        return await restore_entry(intake, entry, run, fields, after)

    monkeypatch.setattr(SessionLeases, "restore_entry", refuse_once)
    calls = {"bad", "call-1", "call-2"}
    async with harness.worker() as worker:
        for call in calls:
            await harness.announce(call)
        await eventually(lambda: len(worker.running) == len(calls), "the sessions")
        await harness.redis.xtrim(sessions, maxlen=0, approximate=False)

        async def announced() -> bool:
            entries: Any = await harness.redis.xrange(sessions)
            return {fields[b"session"].decode() for _, fields in entries} == calls

        await eventually(announced, "all entries to be restored")
        for call in calls:
            await harness.append(call, end="1")
        await harness.until_ended(*calls)
        await no_longer(lambda: harness.redis.xlen(sessions), "the entries")
    assert worker.context.stats.internal_errors["heartbeat"] == 1


async def test_owners_renew_leases_before_takeovers_after_an_outage(stt: TurnsServer) -> None:
    """Leases expire during an outage. The first worker to reconnect must not take all sessions."""
    entry = {"session": "call-1", "encoding": PCM16.encoding, "sample_rate": PCM16.sample_rate}
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        Harness.open(server.url, "stt", stt.url) as harness,
        harness.worker(lease_ms=int(LEASE_S * 1000)) as worker,
    ):
        await eventually(lambda: harness.redis.exists("stt:workers"), "the worker")
        await server.kill()
        await no_longer(lambda: worker.health.up, "Redis")
        await server.restart()
        await eventually(lambda: worker.health.up, "Redis")
        up_since = worker.health.since
        async with harness.redis.pipeline() as other:  # a worker without a heartbeat for an hour
            other.xadd("stt:sessions", dict[Any, Any](entry), id="1-1")
            other.xreadgroup(GROUP, "other", {"stt:sessions": ">"})
            other.xclaim("stt:sessions", GROUP, "other", 0, ["1-1"], idle=3_600_000)
            await other.execute()
        takeovers = worker.context.stats.takeovers
        await eventually(lambda: takeovers["silent"], "the takeover")
        assert time.monotonic() - up_since >= LEASE_S, "it was taken over too soon"
        await harness.append("call-1", end="1")
        await harness.until_ended("call-1")


async def test_owners_renew_first_whichever_call_met_the_outage(
    stt: TurnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A takeover that is retried during the outage must not use the leases it read before."""

    async def nothing_new(intake: SessionLeases, at_most: int, block_ms: int) -> list[OwnedEntry]:
        await anyio.sleep(0.001)
        return []

    monkeypatch.setattr(SessionLeases, "read_new", nothing_new)
    entry = {"session": "call-1", "encoding": PCM16.encoding, "sample_rate": PCM16.sample_rate}
    async with (
        GuardedRedis.start(append_only=True, config={"appendfsync": "always"}) as server,
        Harness.open(server.url, "stt", stt.url) as harness,
        harness.worker(lease_ms=int(LEASE_S * 1000)) as worker,
    ):
        await eventually(lambda: worker.health.available_for_s > LEASE_S, "an up-to-date lease")
        await harness.redis.xadd("stt:sessions", dict[Any, Any](entry))
        await harness.redis.xreadgroup(GROUP, "other", {"stt:sessions": ">"})
        await server.kill()
        await no_longer(lambda: worker.health.up, "Redis")
        await anyio.sleep(LEASE_S)
        await server.restart()
        takeovers = worker.context.stats.takeovers
        await eventually(lambda: takeovers["silent"], "the takeover")
        assert worker.health.available_for_s >= LEASE_S, "it was taken over too soon"
        await harness.append("call-1", end="1")
        await harness.until_ended("call-1")


async def test_unaware_owner_is_fenced_by_its_own_commits(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeat comes too late to report the takeover first."""
    monkeypatch.setattr("worker.worker.HEARTBEAT_INTERVAL_S", 3_600.0)
    sessions = f"{harness.prefix}:sessions"
    async with harness.worker(max_sessions=1, lease_ms=600_000) as first:
        entry = await harness.announce("call-1")
        await harness.until("call-1", SessionStarted)
        await harness.play("call-1", synthesize_words([1, 2], PCM16), end=False)
        await harness.until("call-1", TurnUpdate, 2)
        async with harness.worker(worker_id="two", lease_ms=600_000) as second:
            await harness.redis.xclaim(sessions, GROUP, RELEASED, 0, [entry], justid=True)
            await eventually(lambda: len(second.running), "the takeover")
            await harness.play("call-1", synthesize_words([3, 4], PCM16))
            events = (await harness.until_ended("call-1"))["call-1"]
            await no_longer(lambda: len(first.running), "the first's session")
    check_order(events)
    assert words(events) == [1, 2, 3, 4]
    assert first.context.stats.commits["fenced"] == 1
    assert first.context.stats.commits["gap"] == second.context.stats.commits["fenced"] == 0


async def test_ended_session_is_not_released(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker is stopped between the last event and the removal of the entry."""
    settle, stopping = SessionLeases.complete, anyio.Event()

    async def later(intake: SessionLeases, entry: str) -> None:
        await stopping.wait()
        await anyio.sleep(0.2)
        await settle(intake, entry)

    monkeypatch.setattr(SessionLeases, "complete", later)
    monkeypatch.setattr("worker.leases.running.RELEASE_TIMEOUT_S", PATIENCE_S)
    async with harness.worker(drain_s=0.0) as worker:
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        await harness.until_ended("call-1")
        assert len(worker.running) == 1
        worker.stop()
        stopping.set()
    assert await harness.redis.xlen(f"{harness.prefix}:sessions") == 0


@pytest.mark.parametrize("lost", LOST)
async def test_entry_lost_just_before_its_release(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """No heartbeat runs between the loss and the release."""
    monkeypatch.setattr("worker.worker.HEARTBEAT_INTERVAL_S", 3_600.0)
    sessions = f"{harness.prefix}:sessions"
    async with harness.worker(drain_s=0.0):
        entry = await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1, 2], PCM16), end=False)
        await harness.until("call-1", TurnUpdate, 2)
        await LOST[lost](harness.redis, sessions, entry)
    async with harness.worker(worker_id="two"):
        await harness.play(
            "call-1", synthesize_words([3], PCM16) + synthesize_silence(900, PCM16), pause_s=0
        )
        events = (await harness.until_ended("call-1"))["call-1"]
        await no_longer(lambda: harness.redis.xlen(sessions), "the entry")
    check_order(events)
    assert words(events) == [1, 2, 3]
    assert {event.run for event in events} == {entry}
