"""Records: what the decisions return, and the state that they keep in the checkpoint.

They are apart from the code that makes them, because mypyc cannot compile classes of msgspec.
"""

from collections.abc import Iterator
from enum import Enum
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from schemas.turns import TurnEndReason, Word
from worker.core import stream_ids

DraftKind = Literal["turn.start", "turn.update", "turn.eager_end", "turn.resume", "turn.end"]


class Position(msgspec.Struct, frozen=True):
    """A place in the stream: after the first `offset` bytes of the audio of an entry."""

    entry_id: str = msgspec.field(name="entry", default=stream_ids.START)
    offset: int = 0


class Doubt(Enum):
    """Why the `seq` of an accepted entry is doubtful."""

    BACK = "went back"
    REUSED = "came before with other audio"
    AHEAD = "jumped ahead"
    STRIDE = "rises by more than 1 with every entry"


class Sequence(msgspec.Struct, frozen=True, omit_defaults=True):
    """The count of one producer. Numbers are unwrapped: they keep rising when `seq` wraps."""

    last: int
    """The last accepted number."""
    runs: tuple[int, ...]
    """Lowest and highest number of each accepted range, the last extended one at the end."""
    last_print: int | None = None
    """Fingerprint of the last accepted audio."""
    prints: dict[int, int] = {}
    """Fingerprints of the first entries of the count, without silent ones (a single value
    throughout), which are no evidence."""
    first: int = 0
    printed_to: int | None = None
    """Number up to which `prints` is complete, from `first` on."""
    shift: int = 0
    """Offset from `seq` to the number."""
    ring: tuple[int, int] | None = None
    """Lowest and highest `seq`; None until the counter wraps."""
    holes: int = 0
    """Number of entries in a row that had a hole before them."""

    @property
    def last_seq(self) -> int:
        """The last accepted `seq`."""
        return self.last - self.shift

    @property
    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges of `runs`."""
        return zip(self.runs[::2], self.runs[1::2], strict=True)


class Segment(msgspec.Struct, frozen=True):
    """The audio of one entry, as bytes `start` to `end` of the session.

    It is empty for an entry with a `seq` and no audio.
    """

    entry_id: str
    start: int
    size: int
    src: str = ""
    sequence: Sequence | int | None = None
    """The count of `src` with this entry; None without a `seq`.

    Of an entry that follows the last one of the same `src`, only the fingerprint of its audio.
    """

    @property
    def end(self) -> int:
        """Byte after the last."""
        return self.start + self.size


class Admitted(msgspec.Struct, frozen=True):
    """Result of reading an entry: its new audio, and findings about its `seq`."""

    audio: bytes = b""
    after_end: bool = False
    """Whether the entry comes after the `end`."""
    repeated: bool = False
    """Whether the producer sent this `seq` before, so that its audio is dropped."""
    proven: bool = False
    """Whether the repeated audio is known to be the same as before."""
    missing: int = 0
    """Number of entries that were never appended, according to the `seq`."""
    doubt: Doubt | None = None
    """Why the `seq` is doubtful; the audio is accepted."""
    before: int = 0
    """Previous `seq`, if this one is doubtful."""

    @property
    def ignored(self) -> bool:
        """Whether the mark and the forced end of the entry are ignored, as its audio is."""
        return self.repeated or self.after_end

    @property
    def notable(self) -> bool:
        """Whether there is anything to report about the `seq`."""
        return self.repeated or self.missing > 0 or self.doubt is not None


class LedgerState(msgspec.Struct, frozen=True, omit_defaults=True):
    """State kept in the checkpoint, because trimming removes the entries it comes from."""

    committed: Position = Position()
    committed_bytes: int = 0
    producers: dict[str, int] = {}
    """Last `seq` per `src`, as of the committed position."""
    sequences: dict[str, Sequence] = {}
    """Count per `src`; missing in the checkpoint of an earlier version."""
    announced: str = stream_ids.START
    """Id of the last entry whose errors, gaps and mark are published."""
    end: str | None = None
    """Id of the entry that carried `end`."""


class SentState(msgspec.Struct, frozen=True, omit_defaults=True):
    """State kept in the checkpoint."""

    until: int = 0
    """Session byte up to which audio was sent, on any socket."""
    replayed_s: float = 0.0
    """Time that replays took while the audio after `until` waited."""


class EventDraft(msgspec.Struct, frozen=True):
    """An event to publish, before it is numbered and stamped."""

    kind: DraftKind
    turn: int
    transcript: str | None = None
    reason: TurnEndReason | None = None


class TurnTimes(msgspec.Struct, frozen=True):
    """Where the words of an ended turn are in the session's audio, in milliseconds."""

    start_ms: int
    end_ms: int
    words: tuple[Word, ...] | UnsetType = UNSET


class OpenTurn(msgspec.Struct, frozen=True, omit_defaults=True):
    """The open turn as published to consumers, which a new owner continues."""

    transcript: str = ""
    """Longest text published."""
    transcript_position: int = msgspec.field(name="mark", default=0)
    """Position at which that text arrived."""
    idle_bytes: int = msgspec.field(name="idle", default=0)
    """Time from sending the last audio to the arrival of that text, in bytes."""
    exact: bool = False
    """Whether that position is the end of the audio that the text covers.

    Without times of the provider, it is the end of the audio that was sent when the text arrived.
    """
    eager: bool = False
    """Whether an eager end is published and the turn is neither resumed nor ended."""
    eager_transcript: str | None = None
    """Text of the last published eager end of this turn."""
    committed_text: str = msgspec.field(name="settled", default="")
    """Transcript of its audio before the committed position."""
    parting: str | None = None
    """Separator between `committed_text` and the next word; None if unknown."""


class TurnState(msgspec.Struct, frozen=True, omit_defaults=True):
    """State kept in the checkpoint: the number of the next or open turn, and the open turn."""

    turn: int = 0
    open: OpenTurn | None = None
