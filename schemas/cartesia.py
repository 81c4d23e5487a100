"""Messages of Cartesia's realtime turns API (`/stt/turns/websocket`).

Within a version the provider may add events and fields, so decoding is lenient. Unknown fields are
ignored, unknown events become `UnknownMessage`, and every field except `type` may be absent or
null. A turn without a transcript keeps the transcript of its last message.
"""

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Common to every server message; `request_id` is one value per connection."""

    request_id: str | None = None


class Connected(Message, frozen=True, kw_only=True, tag="connected"):
    """The settings were accepted and the connection is up."""


class TurnStart(Message, frozen=True, kw_only=True, tag="turn.start"):
    """The user began to speak."""


class TurnUpdate(Message, frozen=True, kw_only=True, tag="turn.update"):
    """Cumulative text of the current turn."""

    transcript: str | None = None


class TurnEagerEnd(Message, frozen=True, kw_only=True, tag="turn.eager_end"):
    """The user might be done."""

    transcript: str | None = None


class TurnResume(Message, frozen=True, kw_only=True, tag="turn.resume"):
    """The user was not done."""


class TurnEnd(Message, frozen=True, kw_only=True, tag="turn.end"):
    """The turn is over."""

    transcript: str | None = None


class Error(Message, frozen=True, kw_only=True, tag="error"):
    """An in-band error."""

    title: str | None = None
    message: str | None = None
    status_code: int | None = None
    error_code: str | None = None
    doc_url: str | None = None


class UnknownMessage(msgspec.Struct, frozen=True):
    """A message this version does not know; counted, never fatal."""

    type: str


TurnMessage = TurnStart | TurnUpdate | TurnEagerEnd | TurnResume | TurnEnd
KnownMessage = Connected | TurnMessage | Error
ServerMessage = KnownMessage | UnknownMessage


class Close(msgspec.Struct, frozen=True, tag_field="type", tag="close"):
    """Client: send the events of all audio, then close."""


class TurnSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Turn detection with the names of the `config` message: without the `turn_` of the URL."""

    start_threshold: float | None = None
    eager_end_threshold: float | None = None
    end_threshold: float | None = None
    end_timeout_ms: float | None = None


class Config(msgspec.Struct, frozen=True, tag_field="type", tag="config"):
    """Client: change turn detection mid-session."""

    turn: TurnSettings


_KNOWN: msgspec.json.Decoder[KnownMessage] = msgspec.json.Decoder(KnownMessage)
_UNKNOWN = msgspec.json.Decoder(UnknownMessage)
KNOWN: dict[str, type[KnownMessage]] = {
    str(member.__struct_config__.tag): member
    for member in (Connected, TurnStart, TurnUpdate, TurnEagerEnd, TurnResume, TurnEnd, Error)
}
"""Messages of the server, by type."""


def decode_message(data: bytes | str) -> ServerMessage:
    """Decode one server message.

    Raises `msgspec.DecodeError` (the base of `ValidationError`) if it is not JSON, has no `type`,
    or is invalid for a known type.
    """
    try:
        return _KNOWN.decode(data)
    except msgspec.ValidationError:
        unknown = _UNKNOWN.decode(data)
        if unknown.type in KNOWN:
            raise
        return unknown


def encode_message(message: Close | Config) -> str:
    """Encode one client message; the provider accepts commands as text frames."""
    return msgspec.json.encode(message).decode()
