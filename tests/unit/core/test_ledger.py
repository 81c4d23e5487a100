"""The ledger: positions by example, and every read and reread against a plain model."""

from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from schemas.audio import AudioEntry
from worker.core import sequence, stream_ids
from worker.core.ledger import MAX_PRODUCERS, Ledger
from worker.core.records import Admitted, Doubt, LedgerState, Position, Segment, Sequence


def _round_trip(state: LedgerState) -> LedgerState:
    return msgspec.json.decode(msgspec.json.encode(state), type=LedgerState)


def _numbered(seq: int, audio: bytes = b"aa", src: str = "") -> AudioEntry:
    return AudioEntry(audio=audio, seq=seq, src=src)


def test_empty_ledger_reads_from_beginning() -> None:
    ledger = Ledger(2)
    assert (ledger.read_after, ledger.committed, ledger.read_bytes) == ("0-0", Position("0-0"), 0)
    assert not ledger.commit_to(100)
    assert msgspec.json.encode(ledger.state) == b"{}"


def test_positions_lie_inside_and_between_entries() -> None:
    ledger = Ledger(2)
    for at, size in enumerate((3, 4, 2), 1):
        ledger.admit(f"{at}-0", AudioEntry(audio=bytes(size)))
    assert ledger.read_bytes == 9
    assert list(ledger.segments(2, 4)) == [Segment("1-0", 0, 3), Segment("2-0", 3, 4)]
    assert list(ledger.segments(3, 7)) == [Segment("2-0", 3, 4)]
    assert list(ledger.segments(7, 7)) == []

    moves = []
    for position in (1, 2, 3, 5, 4, 6, 7, 8, 9, 99):
        moved = ledger.commit_to(position)
        moves.append((position, moved, ledger.committed, ledger.committed_bytes))
    assert moves == [
        (1, False, Position("0-0"), 0),
        (2, True, Position("1-0", 2), 2),
        (3, False, Position("1-0", 2), 2),
        (5, True, Position("2-0", 1), 4),
        (4, False, Position("2-0", 1), 4),
        (6, True, Position("2-0", 3), 6),
        (7, False, Position("2-0", 3), 6),
        (8, True, Position("3-0", 1), 8),
        (9, False, Position("3-0", 1), 8),  # half a sample is not readable
        (99, False, Position("3-0", 1), 8),
    ]


def test_committed_entry_is_not_read_again() -> None:
    ledger = Ledger(2)
    ledger.admit("5-3", AudioEntry(audio=b"aabb"))
    ledger.commit_to(4)
    assert ledger.committed == Position("5-4")
    assert ledger.read_after == "5-3"
    assert ledger.state.committed_bytes == 4


def test_repeats_are_dropped_and_gaps_reported() -> None:
    ledger = Ledger(2)
    found = [
        ledger.admit("1-0", _numbered(7)),
        ledger.admit("2-0", _numbered(7)),
        ledger.admit("3-0", _numbered(8)),
        ledger.admit("4-0", _numbered(11)),
        ledger.admit("5-0", _numbered(8)),
        ledger.admit("6-0", _numbered(0, src="b")),
        ledger.admit("7-0", AudioEntry(audio=b"aa")),
        ledger.admit("8-0", _numbered(12)),
        ledger.admit("9-0", _numbered(9)),
    ]
    new, repeated = Admitted(b"aa"), Admitted(repeated=True)
    late = Admitted(b"aa", doubt=Doubt.BACK, before=12)
    assert found == [new, repeated, new, Admitted(b"aa", missing=2), repeated, new, new, new, late]
    assert ledger.read_bytes == 14


def test_ledger_reads_state_of_earlier_version() -> None:
    ledger = Ledger(2, LedgerState(producers={"a": 70_000}))
    assert ledger.admit("1-0", _numbered(69_000, src="a")).repeated
    assert ledger.admit("2-0", _numbered(70_001, src="a")) == Admitted(b"aa")
    assert ledger.admit("3-0", _numbered(3, src="a")).audio == b"aa"
    ledger.commit_to(ledger.read_bytes)
    assert ledger.state.producers == {"a": 3}, "an earlier version goes on from there"


def test_ledger_continues_counts_of_earlier_version() -> None:
    """A worker of an earlier version continues to count and keeps only the last `seq`."""
    ledger = Ledger(2)
    ledger.admit("1-0", _numbered(7))
    ledger.commit_to(2)
    older = msgspec.structs.replace(ledger.state, producers={"": 90})
    assert Ledger(2, _round_trip(older)).admit("2-0", _numbered(90)).repeated


def test_seq_counts_only_entries_with_audio() -> None:
    ledger = Ledger(2)
    ledger.admit("1-0", _numbered(1))
    assert ledger.admit("2-0", AudioEntry(seq=9, end=False)) == Admitted()
    assert ledger.admit("3-0", _numbered(2)) == Admitted(b"aa")


@pytest.mark.parametrize(
    "signal", [AudioEntry(seq=2, mark={}), AudioEntry(seq=2, turn_end=True)], ids=["mark", "end"]
)
def test_seq_counts_entries_with_a_signal(signal: AudioEntry) -> None:
    ledger = Ledger(2)
    ledger.admit("1-0", _numbered(1))
    assert ledger.admit("2-0", signal) == Admitted()
    again = ledger.admit("3-0", signal)
    assert (again.repeated, again.ignored) == (True, True)
    assert ledger.admit("4-0", _numbered(3)) == Admitted(b"aa")
    assert ledger.admit("5-0", AudioEntry(seq=6, mark={"key": 5})) == Admitted(missing=2)
    reused = ledger.admit("6-0", AudioEntry(seq=6, mark={"key": 6}))
    assert (reused.doubt, reused.ignored) == (Doubt.REUSED, False), "it is another mark"


def test_seq_of_a_refused_mark_counts() -> None:
    ledger = Ledger(2)
    ledger.admit("1-0", _numbered(1))
    ledger.admit("2-0", AudioEntry(seq=2), mark_refused=True)
    assert ledger.admit("3-0", _numbered(3)) == Admitted(b"aa")


def test_signal_is_read_again_until_later_audio_is_committed() -> None:
    ledger = Ledger(2)
    ledger.admit("1-0", _numbered(1))
    ledger.admit("2-0", AudioEntry(seq=2, turn_end=True))
    ledger.commit_to(2)
    assert ledger.read_after == "1-0"
    assert ledger.oldest is None
    successor = Ledger(2, _round_trip(ledger.state))
    assert not successor.admit("2-0", AudioEntry(seq=2, turn_end=True)).ignored
    successor.admit("3-0", _numbered(3, b"aaaa"))
    successor.commit_to(4)
    assert successor.committed == Position("3-0", 2)
    last = Ledger(2, _round_trip(successor.state))
    assert last.admit("3-0", _numbered(3, b"aaaa")) == Admitted(b"aa"), "no number is missing"
    assert last.admit("4-0", AudioEntry(seq=2, turn_end=True)).repeated


def test_numbered_marks_without_audio_take_no_memory_each() -> None:
    ledger = Ledger(2)
    ledger.admit("1-0", _numbered(1))
    for seq in range(2, 1_000):
        ledger.admit(f"{seq}-0", AudioEntry(seq=seq, mark={}))
    assert len([*ledger.segments(-1, 9)]) == 2
    ledger.admit("1000-0", _numbered(1_000))
    ledger.commit_to(4)
    assert ledger.state.producers == {"": 1_000}
    assert ledger.admit("1001-0", AudioEntry(seq=500, mark={})).repeated


def test_ledger_takes_nothing_after_end() -> None:
    ledger = Ledger(2)
    assert ledger.admit("1-0", AudioEntry(audio=b"aa", end=True)) == Admitted(b"aa")
    assert ledger.end == "1-0"
    assert ledger.admit("1-1", AudioEntry(audio=b"bb", end=True)) == Admitted(after_end=True)
    ledger.rewind()
    assert ledger.admit("1-0", AudioEntry(audio=b"aa", end=True)) == Admitted(b"aa")
    assert Ledger(2, _round_trip(ledger.state)).end == "1-0"


def test_invalid_fields_are_reported_once() -> None:
    ledger = Ledger(2)
    assert ledger.mark_reported("3-0")
    assert not ledger.mark_reported("3-0")
    ledger.rewind()
    assert not ledger.mark_reported("2-5")
    successor = Ledger(2, _round_trip(ledger.state))
    assert not successor.mark_reported("3-0")
    assert successor.mark_reported("3-1")


def test_ledger_remembers_limited_number_of_producers() -> None:
    ledger = Ledger(1)
    for at in range(MAX_PRODUCERS + 1):
        ledger.admit(f"{at}-0", _numbered(5, b"a", src=str(at)))
    ledger.commit_to(ledger.read_bytes)
    assert list(ledger.state.producers) == [str(at) for at in range(1, MAX_PRODUCERS + 1)]
    assert ledger.admit("90-0", _numbered(5, b"a", src="1")).repeated
    assert not ledger.admit("91-0", _numbered(5, b"a", src="0")).repeated  # no longer remembered


# -- against a model


class Appended(NamedTuple):
    """An entry of the stream, and the producer's own record of it."""

    entry_id: str
    entry: AudioEntry
    start: int
    """Start of its audio among all audio that counts."""
    new: bool
    repeated: bool
    missing: int


NEXT = 10**6
"""Stands for the number that follows the producer's last one."""


class LedgerMachine(RuleBasedStateMachine):
    """A producer appends anything; readers come and go; every byte is marked by its position."""

    @initialize(width=st.sampled_from([1, 2, 4]))
    def begin(self, width: int) -> None:
        self.width = width
        self.stream: list[Appended] = []
        self.last_id = "0-0"
        self.truth = bytearray()
        self.sequences: dict[str, Sequence] = {}
        self.ended = False
        self.announced: list[str] = []
        self.floor = 0
        self.ledger = Ledger(width)
        self._restart_reading()

    def _restart_reading(self) -> None:
        after = stream_ids.order(self.ledger.read_after)
        self.unread = [one for one in self.stream if stream_ids.order(one.entry_id) > after]
        self.received = bytearray()
        self.admitted = False
        self.received_from = self.ledger.committed_bytes

    @rule(
        size=st.integers(0, 9),
        signal=st.sampled_from([{}, {}, {"mark": {}}, {"mark": {"key": 5}}, {"turn_end": True}]),
        seq=st.none() | st.integers(0, 6) | st.just(NEXT),
        src=st.sampled_from(["", "a", "b"]),
        end=st.sampled_from([False] * 25 + [True]),
        ms=st.integers(0, 1),
    )
    def append(
        self,
        size: int,
        signal: dict[str, Any],
        seq: int | None,
        src: str,
        end: bool,
        ms: int,
    ) -> None:
        if seq == NEXT:
            known = self.sequences.get(src)
            seq = None if known is None else known.last_seq + 1
        entry = AudioEntry(
            audio=bytes((len(self.truth) + at) % 251 for at in range(size)),
            seq=seq,
            src=src,
            end=end,
            **signal,
        )
        entry_id = (
            f"{stream_ids.milliseconds(self.last_id) + 1}-0"
            if ms
            else stream_ids.successor(self.last_id)
        )
        self.last_id = entry_id
        new, repeated, missing = not self.ended, False, 0
        if new and seq is not None and (size or signal):
            decided = sequence.take(self.sequences.get(src), seq, sequence.content(entry))
            if isinstance(decided, sequence.Taken):
                self.sequences[src], missing, _ = decided
            else:
                new, repeated = False, True
        appended = Appended(entry_id, entry, len(self.truth), new, repeated, missing)
        if new:
            self.truth += entry.audio
        self.ended = self.ended or end
        self.stream.append(appended)
        self.unread.append(appended)

    @precondition(lambda self: self.unread)
    @rule(count=st.integers(1, 5))
    def read(self, count: int) -> None:
        for one in self.unread[:count]:
            entry = one.entry
            signals = entry.mark is not None or entry.turn_end or entry.end
            plain = entry.audio and not signals and self.ledger.end is None and self.admitted
            if plain and self.ledger.admit_next(one.entry_id, entry.audio, entry.src, entry.seq):
                assert (one.new, one.missing, one.repeated) == (True, 0, False)
                self.received += entry.audio
                continue
            admission = self.ledger.admit(one.entry_id, one.entry)
            self.admitted = self.admitted or bool(admission.audio)
            settled = max(0, self.ledger.committed_bytes - one.start) if one.new else 0
            assert admission.audio == (one.entry.audio[settled:] if one.new else b"")
            assert (admission.missing, admission.repeated) == (one.missing, one.repeated)
            if admission.missing and self.ledger.mark_reported(one.entry_id):
                self.announced.append(one.entry_id)
            assert admission.ignored == (one.repeated or not one.new)
            self.received += admission.audio
        del self.unread[:count]

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(0, self.ledger.read_bytes + 3), label="position")
        before = self.ledger.committed_bytes
        moved = self.ledger.commit_to(position)
        wanted = min(position, self.ledger.read_bytes) // self.width * self.width
        assert self.ledger.committed_bytes == max(before, wanted)
        assert moved == (wanted > before)

    @rule()
    def lose_socket(self) -> None:
        self.ledger.rewind()
        self._restart_reading()

    @rule()
    def lose_worker(self) -> None:
        self.ledger = Ledger(self.width, _round_trip(self.ledger.state))
        self._restart_reading()

    @rule()
    def trim(self) -> None:
        keep = stream_ids.order(self.ledger.committed.entry_id)
        self.stream = [one for one in self.stream if stream_ids.order(one.entry_id) >= keep]

    @invariant()
    def committed_moves_forward_by_samples(self) -> None:
        committed = self.ledger.committed_bytes
        assert committed >= self.floor
        assert committed % self.width == 0
        assert committed <= self.ledger.read_bytes
        self.floor = committed

    @invariant()
    def read_audio_is_model_without_repeats(self) -> None:
        assert self.truth[self.received_from :].startswith(self.received)
        assert self.ledger.read_bytes == self.received_from + len(self.received)
        if not self.unread:
            assert self.received == self.truth[self.received_from :]

    @invariant()
    def pieces_cover_uncommitted_audio(self) -> None:
        at = None
        for piece in self.ledger.segments(self.ledger.committed_bytes, self.ledger.read_bytes):
            assert at is None or piece.start == at
            assert at is not None or piece.start <= self.ledger.committed_bytes
            at = piece.end
        assert at in {None, self.ledger.read_bytes}

    @invariant()
    def gaps_are_reported_once(self) -> None:
        assert len(self.announced) == len(set(self.announced))


TestLedger = LedgerMachine.TestCase


@pytest.mark.parametrize("width", [1, 2, 4])
def test_commit_inside_entry_resumes_inside_it(width: int) -> None:
    ledger = Ledger(width)
    audio = bytes(range(16))
    ledger.admit("1-0", _numbered(1, audio))
    ledger.commit_to(9)
    successor = Ledger(width, _round_trip(ledger.state))
    assert successor.read_after == "0-18446744073709551615"
    settled = 9 // width * width
    assert successor.admit("1-0", _numbered(1, audio)) == Admitted(audio[settled:])
    (piece,) = successor.segments(settled, 16)
    assert (piece.entry_id, piece.start, piece.size) == ("1-0", 0, 16)


def test_entry_of_position_is_found() -> None:
    ledger = Ledger(2)
    for entry in ("1-0", "2-0", "3-0"):
        ledger.admit(entry, AudioEntry(audio=bytes(10)))
    positions = (0, 9, 10, 29, 30, 1_000)
    found = [ledger.entry_at(position) for position in positions]
    assert found == ["1-0", "1-0", "2-0", "3-0", "3-0", "3-0"]
    ledger.commit_to(14)
    assert (ledger.entry_at(9), ledger.entry_at(14)) == (None, "2-0")
    ledger.commit_to(30)
    assert ledger.entry_at(30) is None


def test_position_covers_all_but_partial_sample() -> None:
    ledger = Ledger(4)
    ledger.admit("1-0", AudioEntry(audio=bytes(10)))
    ledger.commit_to(8)
    assert [ledger.covers(position) for position in (0, 8, 11, 12)] == [True, True, True, False]
