"""The audio ledger: which bytes of which entries were taken in, and up to where all is settled.

The session's audio is one run of bytes counted from its first; a `Position` says where in the
stream such a byte lies. Everything before the committed position is covered by published events
and may be trimmed; everything after it would be read again from Redis by a new socket or a new
owner, and is judged again exactly as the first time.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator

import msgspec

from schemas.audio import AudioEntry
from worker.core import sequence, stream_ids
from worker.core.sequence import Doubt, Sequence

MAX_PRODUCERS = 16
"""Producer processes (`src`) whose last `seq` is remembered per session."""


class Position(msgspec.Struct, frozen=True):
    """Everything in entries before `entry`, and the first `offset` bytes of its audio."""

    entry_id: str = msgspec.field(name="entry", default=stream_ids.START)
    offset: int = 0


class LedgerState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What survives the worker: all that trimming would make it forget."""

    committed: Position = Position()
    committed_bytes: int = 0
    producers: dict[str, int] = {}
    """Last `seq` per `src`, as of the committed position."""
    sequences: dict[str, Sequence] = {}
    """What else is known of the `seq` of each `src`; a worker of an earlier version knows none."""
    announced: str = stream_ids.START
    """Faults and holes of entries up to this one are published."""
    end: str | None = None
    """Id of the entry that carried `end`."""


class Segment(msgspec.Struct, frozen=True):
    """The audio of one entry, as bytes `start` to `end` of the session."""

    entry_id: str
    start: int
    size: int
    src: str = ""
    sequence: Sequence | None = None
    """The count of `src` with this entry; None without a `seq`."""

    @property
    def end(self) -> int:
        """Byte after the last."""
        return self.start + self.size


class Admitted(msgspec.Struct, frozen=True):
    """What an entry brings: new audio, and what is wrong with it."""

    audio: bytes = b""
    repeated: bool = False
    """A producer sent this `seq` before; its audio is not taken again."""
    proven: bool = False
    """The repeated audio is known to be the same as before."""
    missing: int = 0
    """Entries that the `seq` shows were never appended."""
    doubt: Doubt | None = None
    """Why the `seq` is doubtful; the audio is taken."""
    before: int = 0
    """If it is doubtful, the `seq` taken before it."""

    @property
    def notable(self) -> bool:
        """Whether there is anything to say of the `seq`."""
        return self.repeated or self.missing > 0 or self.doubt is not None


class Ledger:
    """Positions of one session's audio."""

    def __init__(self, width: int, state: LedgerState | None = None) -> None:
        state = state or LedgerState()
        self._width = width
        self._committed = state.committed
        self._committed_bytes = state.committed_bytes
        self._settled_sequences = OrderedDict(_sequences(state))
        self._sequences = self._settled_sequences.copy()
        self._segments: deque[Segment] = deque()
        self._reported = state.announced
        self.end = state.end
        self.read_bytes = state.committed_bytes
        """Bytes of the session taken in so far."""

    @property
    def state(self) -> LedgerState:
        """Return what a new owner needs."""
        return LedgerState(
            committed=self._committed,
            committed_bytes=self._committed_bytes,
            producers={src: each.last_seq for src, each in self._settled_sequences.items()},
            sequences=dict(self._settled_sequences),
            announced=self._reported,
            end=self.end,
        )

    @property
    def committed(self) -> Position:
        """Up to where everything is covered by published events."""
        return self._committed

    @property
    def committed_bytes(self) -> int:
        """The same, as bytes of the session."""
        return self._committed_bytes

    @property
    def read_after(self) -> str:
        """Id after which reading has to go on to see everything not committed."""
        return stream_ids.predecessor(self._committed.entry_id)

    def rewind(self) -> None:
        """Forget what was taken in beyond the committed position: it will be read again."""
        self._segments.clear()
        self._sequences = self._settled_sequences.copy()
        self.read_bytes = self._committed_bytes

    def admit(self, entry_id: str, entry: AudioEntry) -> Admitted:
        """Take in an entry, in stream order. Entries after the end bring nothing."""
        if self.end is not None and stream_ids.order(entry_id) > stream_ids.order(self.end):
            return Admitted()
        if entry.end:
            self.end = entry_id
        if not entry.audio:
            return Admitted()
        counted = None
        before = missing = 0
        doubt = None
        if entry.seq is not None:
            known = self._sequences.get(entry.src)
            decided = sequence.take(known, entry.seq, entry.audio)
            if isinstance(decided, sequence.Repeat):
                return Admitted(repeated=True, proven=decided.proven)
            counted, missing, doubt = decided
            if doubt is not None and known is not None:
                before = known.last_seq
            _remember(self._sequences, entry.src, counted)
        audio = entry.audio
        start = self.read_bytes
        if entry_id == self._committed.entry_id:
            audio = audio[self._committed.offset :]
            start -= self._committed.offset
        self._segments.append(Segment(entry_id, start, len(entry.audio), entry.src, counted))
        self.read_bytes += len(audio)
        return Admitted(audio=audio, missing=missing, doubt=doubt, before=before)

    def mark_reported(self, entry_id: str) -> bool:
        """Say whether what is wrong with this entry is still to be published; then it is."""
        if not self.is_news(entry_id):
            return False
        self._reported = entry_id
        return True

    def is_news(self, entry_id: str) -> bool:
        """Say whether nothing was announced yet of this entry, or of one after it."""
        return stream_ids.order(entry_id) > stream_ids.order(self._reported)

    def commit_to(self, position: int) -> bool:
        """Settle everything before byte `position`, taken down to a sample boundary.

        Returns whether the committed position moved; it never moves back.
        """
        position = min(position, self.read_bytes)
        position -= position % self._width
        if position <= self._committed_bytes:
            return False
        while self._segments and self._segments[0].end <= position:
            piece = self._segments.popleft()
            if piece.sequence is not None:
                _remember(self._settled_sequences, piece.src, piece.sequence)
            self._committed = Position(stream_ids.successor(piece.entry_id))
        if self._segments and self._segments[0].start < position:
            piece = self._segments[0]
            self._committed = Position(piece.entry_id, position - piece.start)
        self._committed_bytes = position
        return True

    @property
    def oldest(self) -> str | None:
        """Return the first entry whose audio is taken in and not committed."""
        return self._segments[0].entry_id if self._segments else None

    def covers(self, position: int) -> bool:
        """Say whether every whole sample before byte `position` is committed."""
        return position - self._committed_bytes < self._width

    def entry_at(self, position: int) -> str | None:
        """Return the entry that holds byte `position`, or the last one; None if it is committed."""
        pieces = reversed(self._segments)
        return next((piece.entry_id for piece in pieces if piece.start <= position), None)

    def segments(self, start: int, end: int) -> Iterator[Segment]:
        """Yield the uncommitted pieces that hold any byte from `start` up to `end`."""
        return (piece for piece in self._segments if piece.end > start and piece.start < end)


def _sequences(state: LedgerState) -> Iterator[tuple[str, Sequence]]:
    """Yield what is known of each `src`, be the state of this version or of one before it."""
    for src, last_seq in state.producers.items():
        known = state.sequences.get(src)
        fits = known is not None and known.last_seq == last_seq
        yield src, known if known and fits else sequence.restored(last_seq)


def _remember(sequences: OrderedDict[str, Sequence], src: str, counted: Sequence) -> None:
    sequences[src] = counted
    sequences.move_to_end(src)
    while len(sequences) > MAX_PRODUCERS:
        sequences.popitem(last=False)
