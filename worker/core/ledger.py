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
from worker.core import ids, sequence
from worker.core.sequence import Doubt, Sequence

MAX_PRODUCERS = 16
"""Producer processes (`src`) whose last `seq` is remembered per session."""


class Position(msgspec.Struct, frozen=True):
    """Everything in entries before `entry`, and the first `offset` bytes of its audio."""

    entry: str = ids.START
    offset: int = 0


class LedgerState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What survives the worker: all that trimming would make it forget."""

    committed: Position = Position()
    committed_bytes: int = 0
    producers: dict[str, int] = {}
    """Last `seq` per `src`, as of the committed position."""
    sequences: dict[str, Sequence] = {}
    """What else is known of the `seq` of each `src`; a worker of an earlier version knows none."""
    announced: str = ids.START
    """Faults and holes of entries up to this one are published."""
    end: str | None = None
    """Id of the entry that carried `end`."""


class Piece(msgspec.Struct, frozen=True):
    """The audio of one entry, as bytes `start` to `end` of the session."""

    entry: str
    start: int
    size: int
    src: str = ""
    sequence: Sequence | None = None
    """The count of `src` with this entry; None without a `seq`."""

    @property
    def end(self) -> int:
        """Byte after the last."""
        return self.start + self.size


class Admission(msgspec.Struct, frozen=True):
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
        self._pieces: deque[Piece] = deque()
        self._announced = state.announced
        self.end = state.end
        self.taken = state.committed_bytes
        """Bytes of the session taken in so far."""

    @property
    def state(self) -> LedgerState:
        """Return what a new owner needs."""
        return LedgerState(
            committed=self._committed,
            committed_bytes=self._committed_bytes,
            producers={src: each.last_seq for src, each in self._settled_sequences.items()},
            sequences=dict(self._settled_sequences),
            announced=self._announced,
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
        return ids.predecessor(self._committed.entry)

    def rewind(self) -> None:
        """Forget what was taken in beyond the committed position: it will be read again."""
        self._pieces.clear()
        self._sequences = self._settled_sequences.copy()
        self.taken = self._committed_bytes

    def admit(self, entry_id: str, entry: AudioEntry) -> Admission:
        """Take in an entry, in stream order. Entries after the end bring nothing."""
        if self.end is not None and ids.order(entry_id) > ids.order(self.end):
            return Admission()
        if entry.end:
            self.end = entry_id
        if not entry.audio:
            return Admission()
        counted = None
        before = missing = 0
        doubt = None
        if entry.seq is not None:
            known = self._sequences.get(entry.src)
            decided = sequence.take(known, entry.seq, entry.audio)
            if isinstance(decided, sequence.Repeat):
                return Admission(repeated=True, proven=decided.proven)
            counted, missing, doubt = decided
            if doubt is not None and known is not None:
                before = known.last_seq
            _remember(self._sequences, entry.src, counted)
        audio = entry.audio
        start = self.taken
        if entry_id == self._committed.entry:
            audio = audio[self._committed.offset :]
            start -= self._committed.offset
        self._pieces.append(Piece(entry_id, start, len(entry.audio), entry.src, counted))
        self.taken += len(audio)
        return Admission(audio=audio, missing=missing, doubt=doubt, before=before)

    def announce(self, entry_id: str) -> bool:
        """Say whether what is wrong with this entry is still to be published; then it is."""
        if not self.is_news(entry_id):
            return False
        self._announced = entry_id
        return True

    def is_news(self, entry_id: str) -> bool:
        """Say whether nothing was announced yet of this entry, or of one after it."""
        return ids.order(entry_id) > ids.order(self._announced)

    def commit_to(self, position: int) -> bool:
        """Settle everything before byte `position`, taken down to a sample boundary.

        Returns whether the committed position moved; it never moves back.
        """
        position = min(position, self.taken)
        position -= position % self._width
        if position <= self._committed_bytes:
            return False
        while self._pieces and self._pieces[0].end <= position:
            piece = self._pieces.popleft()
            if piece.sequence is not None:
                _remember(self._settled_sequences, piece.src, piece.sequence)
            self._committed = Position(ids.successor(piece.entry))
        if self._pieces and self._pieces[0].start < position:
            piece = self._pieces[0]
            self._committed = Position(piece.entry, position - piece.start)
        self._committed_bytes = position
        return True

    @property
    def oldest(self) -> str | None:
        """Return the first entry whose audio is taken in and not committed."""
        return self._pieces[0].entry if self._pieces else None

    def covers(self, position: int) -> bool:
        """Say whether every whole sample before byte `position` is committed."""
        return position - self._committed_bytes < self._width

    def entry_at(self, position: int) -> str | None:
        """Return the entry that holds byte `position`, or the last one; None if it is committed."""
        pieces = reversed(self._pieces)
        return next((piece.entry for piece in pieces if piece.start <= position), None)

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """Yield the uncommitted pieces that hold any byte from `start` up to `end`."""
        return (piece for piece in self._pieces if piece.end > start and piece.start < end)


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
