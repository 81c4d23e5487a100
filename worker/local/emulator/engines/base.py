"""The small interface between the STT server and what listens: an engine and its hearings.

An `Engine` is shared by every connection (weights, thread pools); a `Hearing` is one
connection's audio being heard. Events go out through the `emit` callback in order, as soon as
they are known; the server adds `request_id` and writes them to the socket.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

EventKind = Literal["turn.start", "turn.update", "turn.eager_end", "turn.resume", "turn.end"]


class EngineEvent(msgspec.Struct, frozen=True):
    """One turn event of the provider protocol; `transcript` is None where it carries no text."""

    kind: EventKind
    transcript: str | None = None


class TurnSettings(msgspec.Struct, frozen=True):
    """Turn detection settings of one connection.

    The thresholds are compared with the likelihood (0 to 1) that the user is still in a turn:
    above `start` a turn begins, below `eager_end` it is probably over, below `end` it is over.
    `end_timeout_ms` caps the wait after speech stopped, in milliseconds of received audio.
    """

    start: float = 0.8
    eager_end: float = 0.6
    end: float = 0.3
    end_timeout_ms: float = 5600.0


class AudioFormat(msgspec.Struct, frozen=True):
    """How the bytes of one connection are to be read: a `pcm_*` encoding and a rate in Hz."""

    encoding: str
    sample_rate: int


class RecognizerStream(Protocol):
    """One connection's audio. All methods are called from the event loop, never concurrently."""

    async def feed(self, audio: bytes) -> None:
        """Hear more audio, of any length, even one that ends inside a sample.

        Returning late is backpressure. The clock is the audio: nothing happens without it.
        """
        ...

    def configure(self, turn: TurnSettings) -> None:
        """Use other turn settings from here on, an open turn included."""
        ...

    async def flush(self) -> None:
        """Hear all that was fed to its end; emit what it gives, the open turn's end included."""
        ...

    async def aclose(self) -> None:
        """Let go of everything held for this connection, without emitting."""
        ...


class Engine(Protocol):
    """What every connection shares."""

    name: str

    def open(
        self,
        audio: AudioFormat,
        turn: TurnSettings,
        keyterms: tuple[str, ...],
        emit: Callable[[EngineEvent], None],
    ) -> RecognizerStream:
        """Begin to hear one connection."""
        ...

    async def aclose(self) -> None:
        """Let go of weights and threads."""
        ...
