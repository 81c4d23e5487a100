"""Sequences: counters by example, and any producer that resends, wraps or restarts."""

from collections.abc import Iterable
from collections.abc import Sequence as Row
from itertools import chain

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.records import Doubt, Sequence
from worker.core.sequence import (
    MAX_HOLE,
    MAX_HOLES_IN_A_ROW,
    MAX_RUNS,
    REPEAT_REACH,
    RINGS,
    Repeat,
    restored,
    take,
)

Entry = tuple[int, bytes]
Outcome = str | int | Doubt
"""`repeat`, the number of missing entries, or the doubt."""


def _audio(number: int) -> bytes:
    """Return distinct audio for each number, never silent."""
    return b"\1" + number.to_bytes(8, "big", signed=True)


def _play(entries: Iterable[Entry], known: Sequence | None = None) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for seq, audio in entries:
        decided = take(known, seq, audio)
        if isinstance(decided, Repeat):
            outcomes.append("repeat")
            continue
        known = msgspec.json.decode(msgspec.json.encode(decided.sequence), type=Sequence)
        assert known == decided.sequence, "it survives the worker"
        assert known.last_seq == seq
        outcomes.append(decided.doubt or decided.missing)
    return outcomes


def _fresh(seqs: Iterable[int]) -> list[Entry]:
    """Return entries with distinct audio."""
    return [(seq, _audio(at)) for at, seq in enumerate(seqs)]


TABLE: dict[str, tuple[list[Entry], Row[Outcome]]] = {
    "counts": (_fresh([7, 8, 9]), [0, 0, 0]),
    "gap": (_fresh([7, 10, 11]), [0, 2, 0]),
    "repeat at once": ([(7, b"a1"), (7, b"a1"), (8, b"b1")], [0, "repeat", 0]),
    "buffer again": ([*[(n, _audio(n)) for n in range(9)]] * 2, [*[0] * 9, *["repeat"] * 9]),
    "late entry": (_fresh([1, 2, 4, 3, 5]), [0, 0, 1, Doubt.BACK, 0]),
    "late entry, then a repeat": (
        [*[(n, _audio(n)) for n in (1, 2, 3, 4, 5, 6, 8, 7)], (8, _audio(8)), (9, _audio(9))],
        [*[0] * 6, 1, Doubt.BACK, "repeat", 0],
    ),
    "16 bits": (_fresh([65_534, 65_535, 0, 1]), [0, 0, 0, 0]),
    "16 bits with a gap": (_fresh([65_533, 1, 2]), [0, 3, 0]),
    "32 bits": (_fresh([2**32 - 1, 0, 1]), [0, 0, 0]),
    "8 bits": (_fresh([*range(250, 256), *range(256), 0, 1]), [0] * 264),
    "signed 32 bits": (_fresh([2**31 - 1, -(2**31), 1 - 2**31]), [0, 0, 0]),
    "31 bits": (_fresh([2**31 - 1, 0, 1]), [0, 0, 0]),
    "restart at the first number": (
        _fresh([0, 1, 2, 0, 1, 2, 3]),
        [0, 0, 0, Doubt.REUSED, 0, 0, 0],
    ),
    "restart at 1": (_fresh([0, 1, 2, 3, 1, 2]), [0, 0, 0, 0, Doubt.REUSED, 0]),
    "restart below": (_fresh([500, 501, 0, 1]), [0, 0, Doubt.BACK, 0]),
    "restart far on": (
        _fresh([*range(6_000), *range(6_000)]),
        [*[0] * 6_000, Doubt.BACK, *[0] * 5_999],
    ),
    "jump and back": (_fresh([1, 2, 10**6, 3, 4]), [0, 0, Doubt.AHEAD, Doubt.BACK, 0]),
    "gap and back": (_fresh([1, 2, 500, 3, 4]), [0, 0, 497, Doubt.BACK, 0]),
    "stuck": (_fresh([5, 5, 5]), [0, Doubt.REUSED, Doubt.REUSED]),
    "stuck later": (_fresh([*range(20), 19, 19]), [*[0] * 20, Doubt.REUSED, Doubt.REUSED]),
    "strides": (
        _fresh(range(0, 2_000, 160)),
        [0, *[159] * MAX_HOLES_IN_A_ROW, *[Doubt.STRIDE] * 4],
    ),
    "silence is no proof": (
        [(0, b"\0\0"), (1, b"a1"), (0, b"\0\0"), (1, b"b1"), (2, b"c1")],
        [0, 0, "repeat", Doubt.REUSED, 0],
    ),
    "speech where silence was": (
        [(0, b"\0\0"), (1, b"\0\0"), (0, b"a1"), (1, b"b1")],
        [0, 0, Doubt.REUSED, 0],
    ),
    "buffer again at the end of 8 bits": (
        [
            *[(n, _audio(n)) for n in range(256)],
            *[(n, _audio(n)) for n in range(256)],
            (256, b"a1"),
        ],
        [*[0] * 256, *["repeat"] * 256, 0],
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_sequence_decides_by_number_and_audio(case: str) -> None:
    entries, outcomes = TABLE[case]
    assert _play(entries) == list(outcomes)


def test_sequence_remembers_entries_within_reach() -> None:
    entries = [(n, _audio(n)) for n in range(8_000)]
    outcomes = _play([*entries, *entries[-REPEAT_REACH:], entries[-REPEAT_REACH - 1]])
    assert outcomes == [*[0] * 8_000, *["repeat"] * REPEAT_REACH, Doubt.BACK]


def test_sequence_state_is_bounded() -> None:
    known: Sequence | None = None
    for at in range(2_000):
        decided = take(known, at * 3, _audio(at))
        assert not isinstance(decided, Repeat)
        known = decided.sequence
    assert known is not None
    assert len(known.runs) == 2 * MAX_RUNS
    assert len(msgspec.json.encode(known)) < 1_000


def test_sequence_reads_reach_of_earlier_version() -> None:
    known = restored(70_000)
    seqs = [70_000, 70_000 - REPEAT_REACH + 1, 70_000 - REPEAT_REACH, 70_001]
    assert _play(_fresh(seqs), known) == ["repeat", "repeat", Doubt.BACK, 0]
    assert _play(_fresh([0]), restored(65_535)) == [0]


def test_step_beyond_largest_gap_is_doubtful() -> None:
    assert _play(_fresh([0, MAX_HOLE + 1])) == [0, MAX_HOLE]
    assert _play(_fresh([0, MAX_HOLE + 2])) == [0, Doubt.AHEAD]


@given(
    ring=st.sampled_from([ring for ring in RINGS if ring[1] - ring[0] >= 2**8 - 1]),
    before=st.integers(0, 200),
    after=st.integers(1, 600),
    data=st.data(),
)
def test_wrapping_counter_is_read_once(
    ring: tuple[int, int], before: int, after: int, data: st.DataObject
) -> None:
    """It sometimes resends part of its buffer, across the wrap too."""
    low, high = ring
    laps = high - low + 1
    numbers = range(high - before, high + after)
    entries = [((n - low) % laps + low, _audio(n)) for n in numbers]
    sent: list[Entry] = []
    wanted: list[Outcome] = []
    for at, entry in enumerate(entries):
        sent.append(entry)
        wanted.append(0)
        if data.draw(st.integers(0, 40), label="resends") == 0:
            again = entries[max(0, at - data.draw(st.integers(0, 100), label="back")) : at + 1]
            sent += again
            wanted += ["repeat"] * len(again)
    assert _play(sent) == wanted


@given(lives=st.lists(st.integers(1, 300), min_size=1, max_size=5), first=st.integers(-3, 70_000))
def test_restarting_counter_loses_no_audio(lives: list[int], first: int) -> None:
    """Each run begins at the same number, with the same `src` and other audio."""
    seqs = list(chain.from_iterable(range(first, first + count) for count in lives))
    outcomes = _play(_fresh(seqs))
    assert "repeat" not in outcomes
    doubts = [outcome for outcome in outcomes if outcome]
    assert len(doubts) <= len(lives) - 1


@given(st.lists(st.integers(-300, 300) | st.integers(65_400, 65_700), max_size=60))
def test_audio_with_new_number_is_accepted(seqs: list[int]) -> None:
    """An entry is a repeat only if its number was received before, signed or not."""
    seen: set[int] = set()
    for seq, outcome in zip(seqs, _play(_fresh(seqs)), strict=True):
        assert outcome != "repeat" or not seen.isdisjoint((seq, seq % 2**16, seq % 2**8))
        seen |= {seq, seq % 2**16, seq % 2**8}
