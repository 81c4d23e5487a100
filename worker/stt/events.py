"""What a provider says on a socket, in one vocabulary for all providers.

The module of each provider decodes its messages to these events. Times are milliseconds of the
socket's audio, from its first byte, filler included.
"""

import msgspec

from worker.core.turn_tracker import ProviderInput


class TimedWord(msgspec.Struct, frozen=True):
    """One word of a turn, and where in the socket's audio it was spoken."""

    text: str
    start_ms: float
    end_ms: float
    confidence: float | None = None


class TurnEvent(msgspec.Struct, frozen=True):
    """An event of a turn."""

    kind: ProviderInput
    text: str | None = None
    """Text of the whole turn; None if the event leaves it unchanged."""
    transcribed_ms: float | None = None
    """End of the audio that the provider has transcribed; None if it sends no times."""
    words: tuple[TimedWord, ...] = ()
    """The words of an ended turn; empty if the provider sends no times of words."""


class AudioTranscribed(msgspec.Struct, frozen=True):
    """Audio up to here was transcribed, and no turn is open."""

    transcribed_ms: float


class Connected(msgspec.Struct, frozen=True):
    """The settings were accepted and the connection is up."""

    request_id: str = ""


class ConfigApplied(msgspec.Struct, frozen=True):
    """A change of settings is in force."""


class Warned(msgspec.Struct, frozen=True):
    """Something that was sent, such as a change of settings, has no effect."""

    code: str
    message: str


class NoTurnToEnd(msgspec.Struct, frozen=True):
    """The command that ends a turn found none."""


class ProviderError(msgspec.Struct, frozen=True):
    """An error after which the stream continues."""

    code: str
    message: str
    status: int = 0


class UnknownMessage(msgspec.Struct, frozen=True):
    """A message of a type that this version does not know."""


Event = (
    TurnEvent
    | AudioTranscribed
    | Connected
    | ConfigApplied
    | Warned
    | NoTurnToEnd
    | ProviderError
    | UnknownMessage
)
