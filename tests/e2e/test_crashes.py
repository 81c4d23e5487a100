"""An internal error in one session: other sessions go on, and retries are bounded."""

import asyncio
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from schemas.audio import Encoding, SessionEntry
from schemas.turns import SessionEnded, SessionError, SessionStarted, TurnEnd, TurnStart
from tests.support.harness import PCM16, Harness, check_order, kinds, words
from tests.support.polling import eventually, no_longer
from worker.bus.committer import CRASHED
from worker.bus.ownership import Fence, OwnedEntry, OwnedSession, SessionLeases
from worker.core.records import EventDraft, TurnTimes
from worker.leases import claim, retries
from worker.leases.retries import MAX_CRASHES, CrashRetries
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.session.publisher import EventPublisher
from worker.session.sender import AudioSender
from worker.stt.stream import Stream

POISON = bytes(3_214)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.01)


@pytest.fixture
def crash_after(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the worker crash on some audio. Return the number of chunks that still succeed."""
    send, spared = AudioSender._send_bytes, [0]

    def crash(sender: AudioSender, stream: Stream, audio: bytes, now: float, own: int) -> None:
        if audio == POISON:
            if not spared[0]:
                raise ZeroDivisionError("a fault put in by the test")
            spared[0] -= 1
        send(sender, stream, audio, now, own)

    monkeypatch.setattr(AudioSender, "_send_bytes", crash)
    return spared


async def _others_go_on(harness: Harness) -> None:
    await harness.announce("good")
    await harness.play("good", synthesize_words([1, 2], PCM16), pause_s=0)
    events = (await harness.until_ended("good"))["good"]
    assert words(events) == [1, 2]


@pytest.mark.usefixtures("crash_after")
async def test_recurring_crash_ends_the_session(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    async with harness.worker():
        await harness.announce("bad")
        await harness.append("bad", audio=POISON)
        events = (await harness.until_ended("bad"))["bad"]
        await _others_go_on(harness)
        dead = await eventually(harness.dead, "the dead letter")
        await no_longer(lambda: harness.redis.xlen(f"{harness.prefix}:sessions"), "the session")
    check_order(events)
    error, ended = events[-2:]
    assert isinstance(error, SessionError)
    assert isinstance(ended, SessionEnded)
    assert (error.code, error.fatal, ended.reason) == ("internal", True, "error")
    assert [fields[b"reason"] for fields in dead] == [b"internal"]
    assert await harness.redis.get(harness.audio_key("bad")) == b"ended"
    crashes = [record for record in caplog.records if record.exc_info]
    assert len(crashes) == MAX_CRASHES
    count = await harness.redis.hget(f"{harness.prefix}:{{0}}:state:bad", "count")
    assert int(count or 0) > MAX_CRASHES, "each claim outbids the one before"


@pytest.mark.usefixtures("crash_after")
async def test_slow_retry_is_not_claimed_by_a_heartbeat(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second claim would fence the first, and the crash count would start over."""
    monkeypatch.setattr("worker.worker.HEARTBEAT_INTERVAL_S", 0.02)
    outbid = SessionLeases.raise_delivery_count

    async def slowly(intake: SessionLeases, owned: OwnedEntry, count: int) -> OwnedEntry | None:
        await anyio.sleep(0.1)
        return await outbid(intake, owned, count)

    monkeypatch.setattr(SessionLeases, "raise_delivery_count", slowly)
    async with harness.worker():
        await harness.announce("bad")
        await harness.append("bad", audio=POISON)
        await harness.until_ended("bad")
        await no_longer(lambda: harness.redis.xlen(f"{harness.prefix}:sessions"), "the session")
    assert len([record for record in caplog.records if record.exc_info]) == MAX_CRASHES


async def test_crash_inside_a_turn_leaves_no_turn_open(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = EventPublisher.publish
    reasons: list[str | None] = []

    def crash(
        publisher: EventPublisher,
        drafts: Sequence[EventDraft],
        spoken_until: float | None = None,
        times: TurnTimes | None = None,
    ) -> None:
        if any(draft.kind == "turn.update" for draft in drafts):
            # Called before the session's own task runs.
            asyncio.get_running_loop().call_soon(lambda: reasons.append(publisher.fenced_reason))
            raise ZeroDivisionError("a fault put in by the test")
        original(publisher, drafts, spoken_until, times)

    monkeypatch.setattr(EventPublisher, "publish", crash)
    async with harness.worker():
        await harness.announce("bad")
        # Audio after the first 300 ms is paced, so the start is committed before the text crashes.
        sound = (
            synthesize_silence(400, PCM16)
            + synthesize_words([1, 2, 3], PCM16)
            + synthesize_silence(900, PCM16)
        )
        await harness.play("bad", sound, pause_s=0)
        events = (await harness.until_ended("bad"))["bad"]
    check_order(events)
    assert kinds(events).count("turn.start") == 1
    (error,) = [event for event in events if isinstance(event, SessionError)]
    assert (error.code, error.fatal) == ("internal", True)
    assert set(reasons) == {CRASHED}, "nothing is committed from a state that may be wrong"


async def test_single_crash_loses_nothing(harness: Harness, crash_after: list[int]) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        await harness.play(
            "call-1",
            synthesize_words([1, 2], PCM16) + synthesize_silence(900, PCM16),
            pause_s=0,
            end=False,
        )
        await harness.until("call-1", TurnEnd)
        await harness.play("call-1", synthesize_words([3], PCM16), end=False)
        await harness.until("call-1", TurnStart, 2)
        await harness.append("call-1", audio=POISON)

        async def claimed_again() -> bool:
            state = f"{harness.prefix}:{{0}}:state:call-1"
            return int(await harness.redis.hget(state, "count") or 0) > 1

        await eventually(claimed_again, "the session to be claimed again")
        crash_after[0] = 1_000
        await harness.play("call-1", synthesize_words([4], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2, 3, 4]
    assert not any(isinstance(event, SessionError) for event in events)


async def test_full_worker_retries_a_crashed_session(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, crash_after: list[int]
) -> None:
    """The session keeps its lease during the retry, and so its capacity slot."""
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.5)
    async with harness.worker(max_sessions=1) as worker:
        await harness.announce("call-1")
        await harness.until("call-1", SessionStarted)
        await harness.announce("call-2")
        await harness.append("call-1", audio=POISON)
        await eventually(lambda: worker.context.retries.waiting, "the session to crash")
        crash_after[0] = 1_000
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        assert words((await harness.until_ended("call-1"))["call-1"]) == [1]
        await harness.append("call-2", end="1")
        events = (await harness.until_ended("call-1", "call-2"))["call-2"]
    check_order(events)


async def test_unreadable_state_ends_the_session(harness: Harness) -> None:
    async with harness.worker():
        await harness.announce("bad")
        await harness.until("bad", SessionStarted)
    await harness.redis.hset(f"{harness.prefix}:{{0}}:state:bad", "snapshot", "{")
    async with harness.worker():
        events = (await harness.until_ended("bad"))["bad"]
        await _others_go_on(harness)
    (error,) = [event for event in events if isinstance(event, SessionError)]
    assert (error.code, error.fatal) == ("internal", True)


@pytest.mark.parametrize(("where", "started"), [("decode_session", 0), ("Session", 1)])
async def test_crash_while_claiming_ends_no_worker(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, where: str, started: int
) -> None:
    """The next worker, which would receive the entry, does not end either."""
    sound = getattr(claim, where)

    def crash(*arguments: Any) -> Any:
        if "poison" in repr(arguments):  # no hexadecimal id, of which there are some, has it
            raise ZeroDivisionError("a fault put in by the test")
        return sound(*arguments)

    monkeypatch.setattr(claim, where, crash)
    async with harness.worker():
        await harness.announce("poison")
        events = (await harness.until_ended("poison"))["poison"]
        await _others_go_on(harness)
        dead = await eventually(harness.dead, "the dead letter")
    check_order(events)
    assert kinds(events) == ["session.started"] * started + ["session.error", "session.ended"]
    assert [fields[b"reason"] for fields in dead] == [b"internal"]


def _ownership(count: int) -> OwnedSession:
    entry = SessionEntry(session="s", encoding=Encoding.PCM_S16LE, sample_rate=16_000)
    return OwnedSession(entry, Fence("5-0", count, "nonce"), "5-0", {})


def test_progress_resets_the_crash_count() -> None:
    crashes = CrashRetries()
    for settled in (0, 0, 100, 100, 100, 100):
        assert crashes.take_due(0.0) == []
        crashes.note_position("5-0", settled)
        assert not crashes.is_exhausted("5-0")
        crashes.record(_ownership(1), 0.0)
        assert [held.fence.entry_id for held in crashes.waiting] == ["5-0"]
        assert len(crashes.take_due(1e9)) == 1
        assert crashes.waiting == []
    crashes.note_position("5-0", 100)
    assert crashes.is_exhausted("5-0")
    crashes.discard("5-0")
    assert not crashes.is_exhausted("5-0")
