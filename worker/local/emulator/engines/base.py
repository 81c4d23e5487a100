"""Interface between the STT server and its speech engines.

All connections share one `Engine` (weights, thread pools). A `RecognizerStream` processes the
audio of one connection. It passes events to the `emit` callback in order, as soon as they are
known. The server adds `request_id` and writes them to the socket.
"""

from collections.abc import Callable
from typing import Final, Literal, Protocol

import msgspec

EventKind = Literal["turn.start", "turn.update", "turn.eager_end", "turn.resume", "turn.end"]


class EngineEvent(msgspec.Struct, frozen=True):
    """One turn event of the provider protocol; `transcript` is None if it carries no text."""

    kind: EventKind
    transcript: str | None = None


TURN_NAMES: Final = {
    "start": "start_threshold",
    "eager_end": "eager_end_threshold",
    "end": "end_threshold",
}
"""Names of the turn settings in the protocol, where they differ."""


class TurnSettings(msgspec.Struct, frozen=True, rename=TURN_NAMES):
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
    """Audio format of one connection: a `pcm_*` encoding and a rate in Hz."""

    encoding: str
    sample_rate: int


class RecognizerStream(Protocol):
    """One connection's audio. All methods are called from the event loop, never concurrently."""

    async def feed(self, audio: bytes) -> None:
        """Process audio of any length; it may end inside a sample.

        A late return is backpressure. Time is measured in audio: without audio, nothing happens.
        """
        ...

    def configure(self, turn: TurnSettings) -> None:
        """Use new turn settings from now on, also for an open turn."""
        ...

    async def flush(self) -> None:
        """Process all buffered audio; emit the remaining events, including the open turn's end."""
        ...

    async def aclose(self) -> None:
        """Release the resources of this connection, without emitting events."""
        ...


class Engine(Protocol):
    """Speech engine shared by all connections."""

    name: str

    def open(
        self,
        audio: AudioFormat,
        turn: TurnSettings,
        keyterms: tuple[str, ...],
        emit: Callable[[EngineEvent], None],
    ) -> RecognizerStream:
        """Create the stream of one connection."""
        ...

    async def aclose(self) -> None:
        """Release weights and threads."""
        ...
