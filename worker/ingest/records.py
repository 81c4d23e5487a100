"""Records: what a producer's protocol says of a call, in one vocabulary.

A call feeds one session, or one for each of its tracks or channels. The parser of a protocol
returns these records; `calls.Call` takes them. No I/O.
"""

from typing import Any

import msgspec

from schemas.audio import SessionEntry, TurnConfig


class Started(msgspec.Struct, frozen=True):
    """The call is known: the sessions to announce with their first audio, a track each."""

    sessions: tuple[SessionEntry, ...]


class Audio(msgspec.Struct, frozen=True):
    """Audio of one track, in the encoding of its session."""

    audio: bytes
    track: int = 0
    """Index into `Started.sessions`."""
    at_ms: int | None = None
    """Milliseconds from the start of the call to the first sample; None if the wire has none."""
    number: int | None = None
    """Number of the frame in its track, from 1, rising by 1; None if the wire has none."""


class Marked(msgspec.Struct, frozen=True):
    """A mark at this place of the audio: a key that was pressed (DTMF), say."""

    mark: dict[str, Any]
    track: int = 0


class TurnEnded(msgspec.Struct, frozen=True):
    """The open turn ends at this place of the audio."""

    track: int = 0


class Configured(msgspec.Struct, frozen=True):
    """Turn settings from this place of the audio on."""

    config: TurnConfig
    track: int = 0


class Ended(msgspec.Struct, frozen=True):
    """The call is over: its sessions end after the audio so far."""


CallInput = Started | Audio | Marked | TurnEnded | Configured | Ended


class ProtocolError(Exception):
    """A producer's message that cannot be used. The socket is closed; the message says why."""

    def __init__(self, message: str, close_code: int = 1008) -> None:
        super().__init__(message)
        self.close_code = close_code
