"""Producer errors discard no audio silently and are announced a bounded number of times."""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from schemas.turns import AudioGap, Event, SessionError, TurnUpdate
from tests.support.harness import PCM16, WORD, Harness, check_order, kinds, words
from tests.support.polling import eventually
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer

WORDS = 20
BYTES_PER_MS = 32


def _errors(events: Sequence[Event]) -> list[SessionError]:
    return [event for event in events if isinstance(event, SessionError)]


def _codes(events: Sequence[Event]) -> list[str]:
    return [error.code for error in _errors(events)]


async def _speak(harness: Harness, count: int = WORDS, first: int = 0, **fields: object) -> None:
    """Append one word an entry, with fields that may depend on the word's number."""
    for number in range(first, first + count):
        given = {
            name: str(value(number)) if callable(value) else str(value)
            for name, value in fields.items()
        }
        await harness.append("call-1", audio=synthesize_words([number], PCM16), **given)


async def _end(harness: Harness) -> list[Event]:
    await harness.append("call-1", end="1")
    events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    return events


COUNTERS: dict[str, tuple[Callable[[int], int], list[str]]] = {
    "8 bits": (lambda n: (250 + n) % 2**8, []),
    "16 bits": (lambda n: (65_530 + n) % 2**16, []),
    "32 bits": (lambda n: (2**32 - 5 + n) % 2**32, []),
    "signed 32 bits": (lambda n: (n - 5) % 2**32 - 2**31, []),
    "restart at 0": (lambda n: n % 10, ["audio_miscounted"]),
    "restart at 1": (lambda n: n if n < 10 else n - 9, ["audio_miscounted"]),
    "restart below": (lambda n: 9_000 + n if n < 10 else n, ["audio_miscounted"]),
    "jump ahead and back": (lambda n: n if n != 10 else 10**9, ["audio_miscounted"] * 2),
    "constant": (lambda _: 7, ["audio_miscounted"] * 6),
}


@pytest.mark.parametrize("counter", COUNTERS)
async def test_counter_that_goes_back_loses_no_word(harness: Harness, counter: str) -> None:
    seq, codes = COUNTERS[counter]
    async with harness.worker():
        await harness.announce("call-1")
        await _speak(harness, seq=seq, src="a")
        events = await _end(harness)
    assert words(events) == list(range(WORDS))
    assert _codes(events) == codes
    assert "audio.gap" not in kinds(events)


async def test_counter_wraps_over_a_lost_socket(harness: Harness, stt: TurnsServer) -> None:
    stt.faults.set("cut@mid-turn,count=1")
    async with harness.worker():
        await harness.announce("call-1")
        await _speak(harness, seq=lambda n: (65_530 + n) % 2**16, src="a")
        events = await _end(harness)
    assert words(events) == list(range(WORDS))
    assert events[-1].connection == 2
    assert not _errors(events)


async def test_counter_wraps_over_a_takeover(harness: Harness, tmp_path: Path) -> None:
    """The producer resends the entries around the wrap to the new owner."""
    async with harness.worker_process("one", tmp_path / "one") as first:
        await harness.announce("call-1")
        await _speak(harness, 8, seq=lambda n: (65_530 + n) % 2**16, src="a")
        await harness.append("call-1", audio=synthesize_silence(2_000, PCM16), seq="2", src="a")
        await eventually(lambda: _kept(harness), "a commit")
        first.kill()
    async with harness.worker():
        for number in range(4, 8):
            seq = str((65_530 + number) % 2**16)
            await harness.append(
                "call-1", audio=synthesize_words([number], PCM16), seq=seq, src="a"
            )
        await _speak(harness, 4, 8, seq=lambda n: n - 5, src="a")
        events = await _end(harness)
    assert words(events) == list(range(12))
    assert not _errors(events)


async def _kept(harness: Harness) -> bool:
    """Whether the first `count` words are all committed."""
    entries = await harness.redis.xlen(harness.audio_key("call-1"))
    return int(entries) <= 1


async def test_long_run_of_repeats_is_announced(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """The producer's counter goes back so far that repeats look like new audio."""
    async with harness.worker():
        await harness.announce("call-1")
        await _speak(harness, 40, seq=lambda n: n, src="a")
        await _speak(harness, 30, 40, seq=lambda n: n - 35, src="a")
        events = await _end(harness)
    assert words(events) == list(range(40))
    (error,) = _errors(events)
    assert (error.code, error.fatal) == ("audio_repeated", False)
    assert error.message.startswith("30 audio entries in a row, 6.0 s from ")
    assert any(error.message in line for line in caplog.messages)


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "seq": ({"seq": "first", "src": "a"}, "audio_malformed"),
    "seq of nanoseconds": ({"seq": "1795887201741000000"}, "audio_malformed"),
    "src": ({"seq": "1", "src": "s" * 129}, "audio_too_large"),
    "config": ({"config": "{"}, "audio_malformed"),
    "config of another kind": ({"config": '{"volume":11}'}, "audio_malformed"),
}


@pytest.mark.parametrize("case", FIELDS)
async def test_error_of_every_entry_is_announced_as_a_sum(
    harness: Harness, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    fields, code = FIELDS[case]
    async with harness.worker() as worker:
        await harness.announce("call-1")
        await _speak(harness, **fields)
        events = await _end(harness)
        dead = await eventually(lambda: _dead(harness, 5), "the dead letters")
        assert worker.context.stats.rejected_entries.total() == 5
    assert words(events) == list(range(WORDS))
    assert _codes(events) == [code] * 6
    counts = [
        int(found[1]) for each in _errors(events) if (found := re.search(_COUNT, each.message))
    ]
    assert counts == [2, 4, 8, 16, 20]
    assert b"16 such entries so far" in dead[-1][b"detail"]
    assert len([line for line in caplog.messages if "rejected entry" in line]) == 5


_COUNT = r"(\d+) (?:such entries so far|in all)"


async def _dead(harness: Harness, count: int) -> Sequence[dict[bytes, bytes]]:
    dead = await harness.dead()
    return [dict(each) for each in dead] if len(dead) >= count else []


async def test_too_large_audio_is_announced_as_a_sum(harness: Harness) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        await harness.append("call-1", audio=synthesize_words([1], PCM16))
        for _ in range(6):
            await harness.append("call-1", audio=bytes(256 * 1024 + 1))
        events = await _end(harness)
    assert words(events) == [1]
    assert _codes(events) == ["audio_too_large"] * 4
    assert "6 in all" in _errors(events)[-1].message


async def test_settings_rejected_with_every_entry_are_summed(harness: Harness) -> None:
    """The settings pass the worker's validation, and the provider rejects them."""
    async with harness.worker():
        await harness.announce("call-1")
        await _speak(harness, config='{"turn_start_threshold":0.5}')
        events = await _end(harness)
    assert words(events) == list(range(WORDS))
    refusals = _errors(events)
    assert 0 < len(refusals) <= 6
    assert len({error.code for error in refusals}) == 1
    found = re.search(_COUNT, refusals[-1].message)
    assert found, "those of a replay count too"
    assert int(found[1]) >= WORDS


async def test_errors_are_counted_once_over_a_takeover(harness: Harness, tmp_path: Path) -> None:
    async with harness.worker_process("one", tmp_path / "one") as first:
        await harness.announce("call-1")
        await _speak(harness, 10, seq="first")
        await harness.until("call-1", TurnUpdate, 2)
        first.kill()
    async with harness.worker():
        await _speak(harness, 10, 10, seq="first")
        events = await _end(harness)
    assert words(events) == list(range(WORDS))
    assert "20 in all" in _errors(events)[-1].message
    assert len(_errors(events)) == 6


async def test_missing_chunks_are_summed(harness: Harness) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        await _speak(harness, seq=lambda n: n + n // 2, src="a")
        events = await _end(harness)
    gaps = [event for event in events if isinstance(event, AudioGap)]
    assert words(events) == list(range(WORDS))
    assert sum(gap.missing_ms for gap in gaps) == 9 * WORD // BYTES_PER_MS
    assert {gap.reason for gap in gaps} == {"producer"}
    assert len(gaps) < 9


async def test_seq_that_counts_samples_is_announced(harness: Harness) -> None:
    """The worker must not announce missing audio before every entry."""
    async with harness.worker():
        await harness.announce("call-1")
        await _speak(harness, seq=lambda n: n * 3_200, src="a")
        events = await _end(harness)
    assert words(events) == list(range(WORDS))
    assert "audio_miscounted" in _codes(events)
    assert "rises by more than 1" in _errors(events)[0].message


IDS: dict[str, Callable[[int], str]] = {
    "counters": lambda n: f"{n + 1}-0",
    "one millisecond": lambda n: f"5-{n}",
    "seconds": lambda n: f"{int(time.time())}-{n}",
    "microseconds": lambda n: f"{int(time.time()) * 10**6 + n}-0",
    "tomorrow": lambda n: f"{int(time.time() + 86_400) * 1_000 + n}-0",
    "another time zone": lambda n: f"{int(time.time() - 7 * 3_600) * 1_000 + n}-0",
}


@pytest.mark.parametrize("case", IDS)
async def test_entry_ids_that_are_not_times_are_not_late(
    harness: Harness, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with harness.worker(max_lag_s=2) as worker:
        await harness.announce("call-1")
        key = harness.audio_key("call-1")
        for number in range(WORDS):
            audio: dict[str | bytes, bytes] = {"audio": synthesize_words([number], PCM16)}
            await harness.producer.xadd(key, audio, id=IDS[case](number))  # type: ignore[arg-type]
        await eventually(lambda: len(worker.running) == 1, "the session")
        (session,) = worker.running
        await harness.until("call-1", TurnUpdate)
        assert session.lag_s == 0
        last = IDS[case](WORDS)
        await harness.producer.xadd(key, {"end": "1"}, id=last)
        events = (await harness.until_ended("call-1"))["call-1"]
        assert worker.context.stats.chunk_lag.count == 0
    check_order(events)
    assert words(events) == list(range(WORDS))
    (error,) = _errors(events)
    assert (error.code, error.fatal) == ("audio_untimed", False)
    assert len([line for line in caplog.messages if "its id is not the time" in line]) == 1


async def test_ids_are_not_announced_again_by_a_new_owner(harness: Harness, tmp_path: Path) -> None:
    key = harness.audio_key("call-1")
    async with harness.worker_process("one", tmp_path / "one") as first:
        await harness.announce("call-1")
        for number in range(10):
            await harness.producer.xadd(
                key, {"audio": synthesize_words([number], PCM16)}, id=f"{number + 1}-0"
            )
        await harness.until("call-1", TurnUpdate, 2)
        first.kill()
    async with harness.worker(max_lag_s=2):
        await harness.producer.xadd(key, {"end": "1"}, id="99-0")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == list(range(10))
    assert _codes(events) == ["audio_untimed"]


async def test_long_turn_publishes_fewer_updates(harness: Harness) -> None:
    spoken: dict[int, list[Event]] = {}
    for interval_ms in (0, 20_000):
        session = f"call-{interval_ms}"
        async with (
            harness.worker(turn_update_interval_ms=interval_ms),
            anyio.create_task_group() as tasks,
        ):
            await harness.announce(session)
            tasks.start_soon(
                harness.play,
                session,
                synthesize_words(range(WORDS), PCM16) + synthesize_silence(1_000, PCM16),
            )
            spoken[interval_ms] = (await harness.until_ended(session))[session]
    for events in spoken.values():
        check_order(events)
        assert words(events) == list(range(WORDS))
    updates = {ms: kinds(events).count("turn.update") for ms, events in spoken.items()}
    assert updates[20_000] < updates[0]


async def test_long_turn_survives_a_kill_between_updates(harness: Harness, tmp_path: Path) -> None:
    """The second worker publishes the text that the first held back."""
    async with anyio.create_task_group() as tasks:
        setting = {"turn_update_interval_ms": "60000"}
        async with harness.worker_process("one", tmp_path / "one", **setting) as first:
            await harness.announce("call-1")
            sound = synthesize_words(range(WORDS), PCM16) + synthesize_silence(1_000, PCM16)
            tasks.start_soon(harness.play, "call-1", sound)
            await harness.until("call-1", TurnUpdate, 3)
            first.kill()
        async with harness.worker(turn_update_interval_ms=60_000):
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == list(range(WORDS))
