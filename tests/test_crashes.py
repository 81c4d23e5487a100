"""A fault of ours in one session: the others go on, and it does not strike for ever."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from schemas.audio import Encoding, SessionEntry
from schemas.turns import SessionEnded, SessionError, SessionStarted, TurnEnd, TurnStart
from tests.stage import PCM16, Stage, check_order, kinds, words
from tests.waiting import eventually, no_longer
from worker import claims, crashes
from worker.bus.intake import Fence, Intake, Owned, Ownership
from worker.core.turns import Draft
from worker.crashes import MOST, Crashes
from worker.local.engines.script import hush, say
from worker.sessions.narrator import Narrator
from worker.sessions.uplink import Uplink

POISON = bytes(3_214)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crashes, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def allergy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the worker a fault: it chokes on some audio. Returns how often it may go well yet."""
    take, spared = Uplink.take, [0]

    def choke(uplink: Uplink, audio: bytes) -> None:
        if audio == POISON:
            if not spared[0]:
                raise ZeroDivisionError("a fault put in by the test")
            spared[0] -= 1
        take(uplink, audio)

    monkeypatch.setattr(Uplink, "take", choke)
    return spared


async def _others_go_on(stage: Stage) -> None:
    await stage.announce("good")
    await stage.play("good", say([1, 2], PCM16), pause_s=0)
    events = (await stage.until_ended("good"))["good"]
    assert words(events) == [1, 2]


@pytest.mark.usefixtures("allergy")
async def test_a_fault_that_always_strikes_ends_the_session(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage.worker():
        await stage.announce("bad")
        await stage.append("bad", audio=POISON)
        events = (await stage.until_ended("bad"))["bad"]
        await _others_go_on(stage)
        dead = await eventually(stage.dead, "the refused entry")
        await no_longer(lambda: stage.redis.xlen(f"{stage.prefix}:sessions"), "the session")
    check_order(events)
    error, ended = events[-2:]
    assert isinstance(error, SessionError)
    assert isinstance(ended, SessionEnded)
    assert (error.code, error.fatal, ended.reason) == ("internal", True, "error")
    assert [fields[b"reason"] for fields in dead] == [b"internal"]
    assert await stage.redis.get(stage.audio_key("bad")) == b"ended"
    struck = [record for record in caplog.records if record.exc_info]
    assert len(struck) == MOST
    count = await stage.redis.hget(f"{stage.prefix}:{{0}}:state:bad", "count")
    assert int(count or 0) > MOST, "each claim outbids the one before"


@pytest.mark.usefixtures("allergy")
async def test_a_slow_retry_is_not_claimed_by_a_heartbeat(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second claim would refuse the first, and the count of crashes would begin again."""
    monkeypatch.setattr("worker.service.HEARTBEAT_S", 0.02)
    outbid = Intake.outbid

    async def slowly(intake: Intake, owned: Owned, count: int) -> Owned | None:
        await anyio.sleep(0.1)
        return await outbid(intake, owned, count)

    monkeypatch.setattr(Intake, "outbid", slowly)
    async with stage.worker():
        await stage.announce("bad")
        await stage.append("bad", audio=POISON)
        await stage.until_ended("bad")
        await no_longer(lambda: stage.redis.xlen(f"{stage.prefix}:sessions"), "the session")
    assert len([record for record in caplog.records if record.exc_info]) == MOST


async def test_a_fault_inside_a_turn_leaves_none_open(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = Narrator.tell

    def choke(
        narrator: Narrator, drafts: Sequence[Draft], spoken_until: float | None = None
    ) -> None:
        if any(draft.kind == "turn.update" for draft in drafts):
            raise ZeroDivisionError("a fault put in by the test")
        tell(narrator, drafts, spoken_until)

    monkeypatch.setattr(Narrator, "tell", choke)
    async with stage.worker():
        await stage.announce("bad")
        # Paced after the first 300 ms, so that the start is committed before the text strikes.
        sound = hush(400, PCM16) + say([1, 2, 3], PCM16) + hush(900, PCM16)
        await stage.play("bad", sound, pause_s=0)
        events = (await stage.until_ended("bad"))["bad"]
    check_order(events)
    assert kinds(events).count("turn.start") == 1
    (error,) = [event for event in events if isinstance(event, SessionError)]
    assert (error.code, error.fatal) == ("internal", True)


async def test_a_fault_that_strikes_once_loses_nothing(stage: Stage, allergy: list[int]) -> None:
    async with stage.worker():
        await stage.announce("call-1")
        await stage.play("call-1", say([1, 2], PCM16) + hush(900, PCM16), pause_s=0, end=False)
        await stage.until("call-1", TurnEnd)
        await stage.play("call-1", say([3], PCM16), end=False)
        await stage.until("call-1", TurnStart, 2)
        await stage.append("call-1", audio=POISON)

        async def claimed_anew() -> bool:
            state = f"{stage.prefix}:{{0}}:state:call-1"
            return int(await stage.redis.hget(state, "count") or 0) > 1

        await eventually(claimed_anew, "the session to be claimed anew")
        allergy[0] = 1_000
        await stage.play("call-1", say([4], PCM16))
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2, 3, 4]
    assert not any(isinstance(event, SessionError) for event in events)


async def test_a_full_worker_tries_again_what_crashed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, allergy: list[int]
) -> None:
    """It keeps the lease meanwhile, and so the place."""
    monkeypatch.setattr(crashes, "FIRST_PAUSE_S", 0.5)
    async with stage.worker(max_sessions=1) as worker:
        await stage.announce("call-1")
        await stage.until("call-1", SessionStarted)
        await stage.announce("call-2")
        await stage.append("call-1", audio=POISON)
        await eventually(lambda: worker.host.crashes.held, "the session to crash")
        allergy[0] = 1_000
        await stage.play("call-1", say([1], PCM16), pause_s=0)
        assert words((await stage.until_ended("call-1"))["call-1"]) == [1]
        await stage.append("call-2", end="1")
        events = (await stage.until_ended("call-1", "call-2"))["call-2"]
    check_order(events)


async def test_a_state_nobody_can_read_ends_the_session(stage: Stage) -> None:
    async with stage.worker():
        await stage.announce("bad")
        await stage.until("bad", SessionStarted)
    await stage.redis.hset(f"{stage.prefix}:{{0}}:state:bad", "snapshot", "{")
    async with stage.worker():
        events = (await stage.until_ended("bad"))["bad"]
        await _others_go_on(stage)
    (error,) = [event for event in events if isinstance(event, SessionError)]
    assert (error.code, error.fatal) == ("internal", True)


@pytest.mark.parametrize(("where", "told"), [("decode_session", 0), ("Session", 1)])
async def test_a_fault_in_a_claim_ends_no_worker(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, where: str, told: int
) -> None:
    """Nor the next one, to which the entry would go."""
    sound = getattr(claims, where)

    def choke(*arguments: Any) -> Any:
        if b"bad" in repr(arguments).encode():
            raise ZeroDivisionError("a fault put in by the test")
        return sound(*arguments)

    monkeypatch.setattr(claims, where, choke)
    async with stage.worker():
        await stage.announce("bad")
        events = (await stage.until_ended("bad"))["bad"]
        await _others_go_on(stage)
        dead = await eventually(stage.dead, "the refused entry")
    check_order(events)
    assert kinds(events) == ["session.started"] * told + ["session.error", "session.ended"]
    assert [fields[b"reason"] for fields in dead] == [b"internal"]


def _ownership(count: int) -> Ownership:
    entry = SessionEntry(session="s", encoding=Encoding.PCM_S16LE, sample_rate=16_000)
    return Ownership(entry, Fence("5-0", count, "nonce"), "5-0", {})


def test_progress_begins_the_count_again() -> None:
    crashes = Crashes()
    for settled in (0, 0, 100, 100, 100, 100):
        assert crashes.due(0.0) == []
        assert not crashes.exhausted("5-0", settled)
        crashes.note(_ownership(1), 0.0)
        assert [held.fence.entry for held in crashes.held] == ["5-0"]
        assert len(crashes.due(1e9)) == 1
        assert crashes.held == []
    assert crashes.exhausted("5-0", 100)
    crashes.forget("5-0")
    assert not crashes.exhausted("5-0", 100)
