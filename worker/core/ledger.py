"""The audio ledger: which bytes of which entries were read, and which of them are committed.

The session's audio is one sequence of bytes, counted from the first. A `Position` locates such a
byte in the stream. Published events cover everything before the committed position, so it may be
trimmed. A new socket or a new owner reads everything after it again, with the same decisions.
"""

from collections import deque
from collections.abc import Iterator
from zlib import crc32

from schemas.audio import AudioEntry
from worker.core import sequence, stream_ids
from worker.core.records import Admitted, LedgerState, Position, Segment, Sequence

MAX_PRODUCERS = 16
"""Maximum number of producers (`src`) per session whose `seq` is remembered."""


class Ledger:
    """Tracks the positions of one session's audio."""

    def __init__(self, width: int, state: LedgerState | None = None) -> None:
        state = state or LedgerState()
        self._width = width
        self.committed = state.committed
        """Position up to which published events cover the audio."""
        self.committed_bytes = state.committed_bytes
        """The committed position, as bytes of the session."""
        self._committed_sequences = dict(_sequences(state))
        self._sequences = self._committed_sequences.copy()
        # The entries that follow the last one that `admit` counted: of one producer, one by one.
        self._following_src = ""
        self._followed: Sequence | None = None
        self._following = 0
        self._following_print = 0
        self._segments: deque[Segment] = deque()
        self._reported = state.announced
        self.end = state.end
        self.read_bytes = state.committed_bytes
        """Number of bytes of the session read so far."""

    @property
    def state(self) -> LedgerState:
        """Return what a new owner needs."""
        return LedgerState(
            committed=self.committed,
            committed_bytes=self.committed_bytes,
            producers={src: each.last_seq for src, each in self._committed_sequences.items()},
            sequences=dict(self._committed_sequences),
            announced=self._reported,
            end=self.end,
        )

    @property
    def state_key(self) -> tuple[int, str, str | None]:
        """A value that differs whenever `state` does."""
        return (self.committed_bytes, self._reported, self.end)

    @property
    def read_after(self) -> str:
        """Entry id after which to read all uncommitted entries."""
        return stream_ids.predecessor(self.committed.entry_id)

    def rewind(self) -> None:
        """Go back to the committed position: entries after it will be read again."""
        self._segments.clear()
        self._sequences = self._committed_sequences.copy()
        self._followed, self._following = None, 0
        self.read_bytes = self.committed_bytes

    def admit(self, entry_id: str, entry: AudioEntry, *, mark_refused: bool = False) -> Admitted:
        """Admit an entry, in stream order. Entries after the `end` are ignored.

        `mark_refused` is whether it came with an invalid mark: its `seq` counts all the same.
        """
        if self.end is not None and stream_ids.order(entry_id) > stream_ids.order(self.end):
            return Admitted(after_end=True)
        if entry.end:
            self.end = entry_id
        marked = entry.mark is not None or entry.turn_end or mark_refused
        if not entry.audio and (entry.seq is None or not marked):
            return Admitted()
        counted, missing, doubt, before = None, 0, None, 0
        if entry.seq is not None:
            self._count_following()
            known = self._sequences.get(entry.src)
            decided = sequence.take(known, entry.seq, sequence.content(entry))
            if isinstance(decided, sequence.Repeat):
                return Admitted(repeated=True, proven=decided.proven)
            counted, missing, doubt = decided
            if doubt is not None and known is not None:
                before = known.last_seq
            _remember(self._sequences, entry.src, counted)
            self._following_src, self._followed = entry.src, counted
        audio = entry.audio
        start = self.read_bytes
        if entry_id == self.committed.entry_id:
            audio = audio[self.committed.offset :]
            start -= self.committed.offset
        segments, size = self._segments, len(entry.audio)
        if not size and segments and not segments[-1].size and segments[-1].src == entry.src:
            segments.pop()  # both are committed together, and the later count contains the earlier
        segments.append(Segment(entry_id, start, size, entry.src, counted))
        self.read_bytes += len(audio)
        return Admitted(audio=audio, missing=missing, doubt=doubt, before=before)

    def admit_next(self, entry_id: str, audio: bytes, src: str, seq: int | None) -> bool:
        """Admit an entry with only audio and the next `seq`; False if `admit` has to decide.

        The caller has admitted at least one entry since the last rewind, and no `end`.
        """
        fingerprint = None
        if seq is not None:
            followed, after = self._followed, self._following
            if (
                followed is None
                or src != self._following_src
                or not sequence.follows(followed, after, seq)
            ):
                return False
            fingerprint = self._following_print = crc32(audio)
            self._following = after + 1
        start, size = self.read_bytes, len(audio)
        self._segments.append(Segment(entry_id, start, size, src, fingerprint))
        self.read_bytes = start + size
        return True

    def _count_following(self) -> None:
        """Add the entries that `admit_next` admitted to the count of their producer."""
        if self._followed is not None and self._following:
            counted = sequence.advanced(self._followed, self._following, self._following_print)
            _remember(self._sequences, self._following_src, counted)
        self._followed, self._following = None, 0

    def mark_reported(self, entry_id: str) -> bool:
        """Mark this entry as reported; return whether it was not reported before."""
        news = self.is_news(entry_id)
        if news:
            self._reported = entry_id
        return news

    def is_news(self, entry_id: str) -> bool:
        """Return whether neither this entry nor a later one was reported."""
        return stream_ids.order(entry_id) > stream_ids.order(self._reported)

    def commit_to(self, position: int) -> bool:
        """Commit everything before byte `position`, rounded down to a whole sample.

        Returns whether the committed position moved; it never moves back.
        """
        position = min(position, self.read_bytes)
        position -= position % self._width
        if position <= self.committed_bytes:
            return False
        segments, whole = self._segments, None
        following, src, last_print = 0, "", 0
        # An entry without audio is committed with the audio after it: it is read again until then.
        while segments and segments[0].start + (segments[0].size or 1) <= position:
            whole = segments.popleft()
            counted = whole.sequence
            if isinstance(counted, int):
                following, src, last_print = following + 1, whole.src, counted
            elif counted is not None:
                self._commit_following(src, following, last_print)
                following = 0
                _remember(self._committed_sequences, whole.src, counted)
        self._commit_following(src, following, last_print)
        if segments and segments[0].start < position:
            self.committed = Position(segments[0].entry_id, position - segments[0].start)
        elif whole is not None:
            self.committed = Position(stream_ids.successor(whole.entry_id))
        self.committed_bytes = position
        return True

    def _commit_following(self, src: str, entries: int, last_print: int) -> None:
        if entries:
            counted = sequence.advanced(self._committed_sequences[src], entries, last_print)
            _remember(self._committed_sequences, src, counted)

    @property
    def oldest(self) -> str | None:
        """Id of the first entry with uncommitted audio."""
        return next((segment.entry_id for segment in self._segments if segment.size), None)

    def covers(self, position: int) -> bool:
        """Return whether every whole sample before byte `position` is committed."""
        return position - self.committed_bytes < self._width

    def entry_at(self, position: int) -> str | None:
        """Return the entry that holds byte `position`, or the last one; None if it is committed."""
        segments = reversed(self._segments)
        return next(
            (each.entry_id for each in segments if each.size and each.start <= position), None
        )

    def segments(self, start: int, end: int) -> Iterator[Segment]:
        """Yield the uncommitted segments that hold any byte from `start` up to `end`."""
        return (
            segment for segment in self._segments if segment.end > start and segment.start < end
        )


def _sequences(state: LedgerState) -> Iterator[tuple[str, Sequence]]:
    """Yield the count of each `src`, from a checkpoint of this or an earlier version."""
    for src, last_seq in state.producers.items():
        known = state.sequences.get(src)
        fits = known is not None and known.last_seq == last_seq
        yield src, known if known and fits else sequence.restored(last_seq)


def _remember(sequences: dict[str, Sequence], src: str, counted: Sequence) -> None:
    """Remember the count of a producer; the producers are in the order of their last entries."""
    if len(sequences) > 1:
        sequences.pop(src, None)
    sequences[src] = counted
    while len(sequences) > MAX_PRODUCERS:
        del sequences[next(iter(sequences))]
