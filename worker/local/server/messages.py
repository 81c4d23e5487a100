"""The wire's JSON: what the server writes, strictly, and the commands it reads.

Kept apart from `schemas.cartesia`, which reads the same messages as leniently as a client must:
were both sides one definition, a mistake in it would agree with itself.
"""

from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from worker.local.engines.base import EngineEvent, TurnSettings

COMMANDS: Final = "done, close, config"


class _Event(msgspec.Struct):
    type: str
    transcript: str | UnsetType
    request_id: str


class _Error(msgspec.Struct):
    type: Literal["error"]
    title: str
    message: str
    error_code: str | UnsetType
    status_code: int
    request_id: str


class Fault(Exception):  # noqa: N818 - what a client did, told in-band; an error only to it
    """Something a client asked for that cannot be; becomes an in-band `error`."""

    def __init__(
        self, title: str, message: str, *, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(f"{title}: {message}")
        self.title = title
        self.message = message
        self.status = status
        self.code = code


class Close(msgspec.Struct, frozen=True, tag_field="type", tag="close"):
    """Turn all audio into events, then close."""


class Done(msgspec.Struct, frozen=True, tag_field="type", tag="done"):
    """Accepted by the service without being documented; here the same as `close`."""


class ConfigTurn(msgspec.Struct, frozen=True):
    """Turn settings to change; None keeps what is."""

    start_threshold: float | None = None
    eager_end_threshold: float | None = None
    end_threshold: float | None = None
    end_timeout_ms: float | None = None

    def over(self, turn: TurnSettings) -> TurnSettings:
        """Merge onto current settings."""
        given = {
            "start": self.start_threshold,
            "eager_end": self.eager_end_threshold,
            "end": self.end_threshold,
            "end_timeout_ms": self.end_timeout_ms,
        }
        return msgspec.structs.replace(
            turn, **{name: value for name, value in given.items() if value is not None}
        )


class Config(msgspec.Struct, frozen=True, tag_field="type", tag="config"):
    """Change turn settings from here on."""

    turn: ConfigTurn | None = None


Command = Close | Done | Config

_encoder: Final = msgspec.json.Encoder()
_commands: Final[msgspec.json.Decoder[Command]] = msgspec.json.Decoder(Command)


def encode_connected(request_id: str) -> bytes:
    """Write the first message of a connection."""
    return _encoder.encode(_Event("connected", UNSET, request_id))


def encode_event(event: EngineEvent, request_id: str) -> bytes:
    """Write a turn event; without a transcript the field is absent."""
    text = UNSET if event.transcript is None else event.transcript
    return _encoder.encode(_Event(event.kind, text, request_id))


def encode_error(fault: Fault, request_id: str) -> bytes:
    """Write an in-band error; without a code the field is absent."""
    code = fault.code or UNSET
    error = _Error("error", fault.title, fault.message, code, fault.status, request_id)
    return _encoder.encode(error)


def decode_command(text: str) -> Command:
    """Read a text message.

    Raises Fault naming the commands there are if it is none of them.
    """
    try:
        return _commands.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:  # the latter by deep nesting
        raise Fault(
            "Invalid message",
            f"Expected a JSON object whose type is one of: {COMMANDS}. {error}",
        ) from error
