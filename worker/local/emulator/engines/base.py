"""Interface between the STT server and its speech engines.

All connections share one `Engine` (weights, thread pools). A `RecognizerStream` processes the
audio of one connection. It passes events to the `emit` callback in order, as soon as they are
known. The server adds `request_id` and writes them to the socket.
"""

from collections.abc import Callable
from typing import Final, Literal, Protocol

import msgspec

from schemas.pcm import Encoding

EventKind = Literal[
    "turn.start", "turn.update", "turn.eager_end", "turn.resume", "turn.end", "progress"
]
EndTrigger = Literal["model", "timeout", "manual", "flush"]
"""Why a turn ended: its likelihood, its timeout, `end_turn`, or `flush`."""


class Word(msgspec.Struct, frozen=True):
    """One word of a transcript; times are seconds of audio since the stream began."""

    text: str
    start_s: float
    end_s: float
    confidence: float = 1.0


class EngineEvent(msgspec.Struct, frozen=True):
    """One turn event, or the reply to `report`, whose kind is `progress`.

    `transcript` is None if the event carries no text. `words` are the words of the transcript.
    `decoded_s` is the position in the audio before which no word is undecoded. `end_likelihood` is
    the likelihood (0 to 1) that the turn is over.
    """

    kind: EventKind
    transcript: str | None = None
    words: tuple[Word, ...] = ()
    decoded_s: float = 0.0
    end_likelihood: float = 0.0
    trigger: EndTrigger = "model"


TURN_NAMES: Final = {
    "start": "start_threshold",
    "eager_end": "eager_end_threshold",
    "end": "end_threshold",
}
"""Names of the turn settings in the protocol, where they differ."""


class TurnSettings(msgspec.Struct, frozen=True, rename=TURN_NAMES):
    """Turn detection settings of one connection.

    The thresholds are compared with the likelihood (0 to 1) that the user is still in a turn:
    above `start` a turn begins, below `eager_end` it is probably over, below `end` it is over. An
    `end` of 0 leaves only the timeout.
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

    @property
    def bytes_per_s(self) -> int:
        """Bytes of one second of audio."""
        return Encoding(self.encoding).width * self.sample_rate


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

    def report(self) -> None:
        """Emit a `progress` event for the audio processed so far, after all earlier events."""
        ...

    async def end_turn(self) -> None:
        """End the open turn with the words decoded so far; audio continues.

        Without an open turn, emit a `progress` event whose trigger is `manual`.
        """
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
