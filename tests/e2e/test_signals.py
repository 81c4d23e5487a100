"""Marks, forced ends and groups, with real workers that are killed around them."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.keys import Keys
from schemas.turns import (
    AudioGap,
    Event,
    SessionError,
    SessionMark,
    SessionStarted,
    TurnEnd,
    TurnUpdate,
)
from tests.support.harness import PCM16, Harness, check_order, kinds, words
from tests.support.polling import eventually
from tests.support.watchers import seen_alive
from worker.core import stream_ids
from worker.local.emulator.engines.script import synthesize_words, words_of
from worker.local.emulator.server import TurnsServer


def _marks(events: Sequence[Event]) -> list[object]:
    return [event.mark for event in events if isinstance(event, SessionMark)]


def _ends(events: Sequence[Event]) -> list[tuple[list[int | str], str]]:
    return [(words([event]), event.reason) for event in events if isinstance(event, TurnEnd)]


@pytest.mark.parametrize("moment", ["before", "at", "after"])
async def test_sigkill_around_a_forced_end_loses_nothing(
    harness: Harness, tmp_path: Path, moment: str
) -> None:
    async with harness.worker_process("one", tmp_path / "one") as first:
        await harness.announce("call-1", group="call")
        await harness.until("call-1", SessionStarted)
        async with harness.worker_process("two", tmp_path / "two"):
            await seen_alive([harness.redis], harness.prefix, 2)
            await harness.append("call-1", mark='{"nth":0}')
            await harness.play("call-1", synthesize_words([0, 1, 2], PCM16), end=False)
            if moment == "before":
                first.send_signal(signal.SIGKILL)
            await harness.append("call-1", mark='{"nth":1}', turn_end="1")
            if moment == "after":
                await harness.until("call-1", TurnEnd)
            first.send_signal(signal.SIGKILL)
            await harness.play("call-1", synthesize_words([3, 4], PCM16), end=False)
            await harness.append("call-1", mark='{"nth":2}', end="1")
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert _ends(events) == [([0, 1, 2], "forced"), ([3, 4], "close")]
    assert _marks(events) == [{"nth": 0}, {"nth": 1}, {"nth": 2}]
    assert {event.group for event in events} == {"call"}
    assert not {"session.error", "audio.gap"} & set(kinds(events))


async def test_turn_without_audio_left_is_forced_to_end(harness: Harness, tmp_path: Path) -> None:
    """The new owner is parked inside the turn: it opens a socket only to end it."""
    async with harness.worker_process("one", tmp_path / "one", lease_ms="2000") as first:
        await harness.announce("call-1")
        sound = synthesize_words([0, 1], PCM16)
        await harness.play("call-1", sound, end=False)
        update = await harness.until("call-1", TurnUpdate)
        first.send_signal(signal.SIGKILL)
        await first.wait()
    newest: Any = await harness.redis.xrevrange(harness.audio_key("call-1"), count=1)
    state = Keys(harness.prefix).state("0", "call-1")
    stored: Any = await harness.redis.hget(state, "snapshot")
    snapshot = msgspec.json.decode(stored)
    snapshot["ledger"] = {
        "committed": {"entry": stream_ids.successor(newest[0][0].decode())},
        "committed_bytes": len(sound),
    }
    await harness.redis.hset(state, mapping={"snapshot": msgspec.json.encode(snapshot)})
    async with harness.worker(lease_ms=2000):
        await harness.append("call-1", turn_end="1")
        await harness.until("call-1", TurnEnd)
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert _ends(events) == [(words_of(update.transcript), "forced")]


async def test_push_to_talk_sends_no_filler(harness: Harness, stt: TurnsServer) -> None:
    size = 0
    async with harness.worker():
        await harness.announce("call-1")
        await harness.append("call-1", turn_end="1")
        for number in range(3):
            sound = synthesize_words([2 * number, 2 * number + 1], PCM16)
            size += len(sound)
            await harness.play("call-1", sound, end=False)
            await harness.append("call-1", turn_end="1")
            await harness.append("call-1", turn_end="1")
            await harness.until("call-1", TurnEnd, number + 1)
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert _ends(events) == [([0, 1], "forced"), ([2, 3], "forced"), ([4, 5], "forced")]
    assert events[-1].connection == 3
    assert sum(each.audio_bytes for each in stt.connections) == size


async def test_numbered_marks_are_published_once(harness: Harness) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        numbered = {"src": "a"}
        await harness.append("call-1", audio=bytes(3_200), seq="1", **numbered)
        for _ in range(2):
            await harness.append("call-1", mark='{"key":"5"}', seq="2", **numbered)
        await harness.append("call-1", mark="5", seq="3", **numbered)
        await harness.append("call-1", audio=bytes(3_200), mark='{"key":"6"}', seq="4", **numbered)
        for _ in range(2):
            await harness.append("call-1", mark='{"key":"7"}')
        async with harness.producer.pipeline(transaction=False) as pipe:
            pipe.xadd(harness.audio_key("call-1"), {"mark": '{"key":"8"}', "end": "1"})
            pipe.xadd(harness.audio_key("call-1"), {"mark": '{"key":"9"}'})
            await pipe.execute()
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    marks = [
        (event.mark["key"], event.audio_ms) for event in events if isinstance(event, SessionMark)
    ]
    assert marks == [("5", 100), ("6", 200), ("7", 200), ("7", 200), ("8", 200)]
    (error,) = (event for event in events if isinstance(event, SessionError))
    assert "field `mark`: must be a JSON object" in error.message
    assert {event.group for event in events} == {msgspec.UNSET}


async def test_hole_before_a_mark_counts_as_the_chunk_before(harness: Harness) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        await harness.append("call-1", audio=bytes(3_200), seq="1")
        await harness.append("call-1", mark="{}", seq="4")
        await harness.append("call-1", audio=bytes(3_200), seq="5", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert [event.missing_ms for event in events if isinstance(event, AudioGap)] == [200]


async def test_rejected_session_names_its_group(harness: Harness) -> None:
    async with harness.worker():
        await harness.announce_as({"session": "call-1", "group": "call"})
        events = (await harness.until_ended("call-1"))["call-1"]
    assert [(kind, event.group) for kind, event in zip(kinds(events), events, strict=True)] == [
        ("session.error", "call"),
        ("session.ended", "call"),
    ]


async def test_restored_entry_keeps_its_group(harness: Harness) -> None:
    sessions = f"{harness.prefix}:sessions"
    async with harness.worker():
        entry = await harness.announce("call-1", group="call")
        await harness.until("call-1", SessionStarted)
        await harness.redis.xdel(sessions, entry)

        async def restored() -> bool:
            rows: Any = await harness.redis.xrange(sessions)
            return [fields.get(b"group") for _, fields in rows] == [b"call"]

        await eventually(restored, "the entry with its group")
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert {event.group for event in events} == {"call"}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("cut@flush,count=4", "forced"),
        ("error=400@flush,count=1", "forced"),
        ("error=500@flush,count=3", "watchdog"),
    ],
)
async def test_failed_flush_of_a_forced_end_is_retried(
    harness: Harness, stt: TurnsServer, fault: str, reason: str
) -> None:
    stt.faults.set(fault)
    async with harness.worker():
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([0, 1, 2], PCM16), end=False)
        await harness.append("call-1", turn_end="1")
        await harness.until("call-1", TurnEnd)
        await harness.play("call-1", synthesize_words([3, 4], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    (first, ended_by), second = _ends(events)
    assert ended_by == reason
    assert second == ([3, 4], "close")
    assert first == [0, 1, 2][: len(first)]
    assert len(first) == 3 or "audio.gap" in kinds(events)
