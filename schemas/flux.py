"""Messages of Deepgram Flux (`/v2/listen`).

The provider may add events and fields, so decoding is lenient. Unknown fields are ignored, unknown
messages become `UnknownMessage`, and every field except `type` may be absent or null. `event` and
`trigger` are open: a client must ignore values that it does not know.

An `Update` comes for each 250 ms of audio, and repeats all words of its turn. Therefore `words` is
kept as JSON; `decode_words` decodes it. For 40 words that is 1.7 us instead of 5.9 us a message, as
fast as without the field. The JSON is a view, which keeps its message in memory.
"""

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Common to every server message; `sequence_id` counts the messages of all types from 0."""

    sequence_id: int | None = None
    request_id: str | None = None


class Connected(Message, frozen=True, kw_only=True, tag="Connected"):
    """The connection is up."""


class TurnInfo(Message, frozen=True, kw_only=True, tag="TurnInfo"):
    """State of the current turn; `event` says why it is sent.

    `transcript` is the whole text of the turn, which may be revised. The audio window covers the
    turn, in seconds from the start of the stream.
    """

    event: str | None = None
    turn_index: int | None = None
    audio_window_start: float | None = None
    audio_window_end: float | None = None
    transcript: str | None = None
    words: msgspec.Raw = msgspec.Raw(b"[]")
    end_of_turn_confidence: float | None = None
    trigger: str | None = None
    languages: tuple[str, ...] | None = None
    languages_hinted: tuple[str, ...] | None = None


class Word(msgspec.Struct, frozen=True):
    """A word of a transcript, with times in seconds from the start of the stream."""

    word: str | None = None
    confidence: float | None = None
    start: float | None = None
    end: float | None = None


class Thresholds(msgspec.Struct, frozen=True, omit_defaults=True):
    """Turn detection: in force, or to change."""

    eager_eot_threshold: float | None = None
    eot_threshold: float | None = None
    eot_timeout_ms: int | None = None


class ConfigureSuccess(Message, frozen=True, kw_only=True, tag="ConfigureSuccess"):
    """A `Configure` took effect; the fields are the configuration in force."""

    thresholds: Thresholds | None = None
    keyterms: tuple[str, ...] | None = None
    language_hints: tuple[str, ...] | None = None
    numerals: bool | None = None


class ConfigureFailure(Message, frozen=True, kw_only=True, tag="ConfigureFailure"):
    """A `Configure` changed nothing. Some clients read the code as `error_code`."""

    code: str | None = None
    error_code: str | None = None
    description: str | None = None


class ServerWarning(Message, frozen=True, kw_only=True, tag="Warning"):
    """A message of the client had no effect; the stream continues."""

    code: str | None = None
    description: str | None = None


class Error(Message, frozen=True, kw_only=True, tag="Error"):
    """A fatal error; the connection closes."""

    code: str | None = None
    description: str | None = None


class UnknownMessage(msgspec.Struct, frozen=True):
    """A message this version does not know; counted, never fatal."""

    type: str


KnownMessage = Connected | TurnInfo | ConfigureSuccess | ConfigureFailure | ServerWarning | Error
ServerMessage = KnownMessage | UnknownMessage


class CloseStream(msgspec.Struct, frozen=True, tag_field="type"):
    """Client: transcribe all audio, then close."""


class ForceEndTurn(msgspec.Struct, frozen=True, tag_field="type"):
    """Client: end the open turn now."""


class Configure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Client: change the configuration mid-session; None keeps the current value."""

    thresholds: Thresholds | None = None
    keyterms: tuple[str, ...] | None = None
    language_hints: tuple[str, ...] | None = None
    numerals: bool | None = None


_KNOWN: msgspec.json.Decoder[KnownMessage] = msgspec.json.Decoder(KnownMessage)
_UNKNOWN = msgspec.json.Decoder(UnknownMessage)
_WORDS: msgspec.json.Decoder[tuple[Word, ...] | None] = msgspec.json.Decoder(
    tuple[Word, ...] | None
)
KNOWN: dict[str, type[KnownMessage]] = {
    str(member.__struct_config__.tag): member
    for member in (Connected, TurnInfo, ConfigureSuccess, ConfigureFailure, ServerWarning, Error)
}
"""Messages of the server, by type."""


def decode_message(data: bytes | str) -> ServerMessage:
    """Decode one server message.

    Raises `msgspec.DecodeError` (the base of `ValidationError`) if it is not JSON, has no `type`,
    or is invalid for a known type. The words of a turn are not validated.
    """
    try:
        return _KNOWN.decode(data)
    except msgspec.ValidationError:
        unknown = _UNKNOWN.decode(data)
        if unknown.type in KNOWN:
            raise
        return unknown


def decode_words(info: TurnInfo) -> tuple[Word, ...]:
    """Decode the words of a turn. Raises `msgspec.DecodeError` if they are invalid."""
    return _WORDS.decode(info.words) or ()


def encode_message(message: CloseStream | ForceEndTurn | Configure) -> str:
    """Encode one client message; the provider accepts commands as text frames."""
    return msgspec.json.encode(message).decode()
