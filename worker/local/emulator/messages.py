"""JSON of the protocol: messages the server writes, and the commands it reads.

This module is separate from `schemas.cartesia`, the lenient definition that clients use. With one
shared definition, tests could not detect a mistake in it.
"""

from http import HTTPStatus
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from worker.local.emulator.engines.base import TURN_NAMES, EngineEvent, TurnSettings

COMMANDS: Final = "done, close, config"


class _Event(msgspec.Struct):
    type: str
    transcript: str | UnsetType
    request_id: str
    turn_id: str | UnsetType = UNSET


class _Error(msgspec.Struct):
    type: Literal["error"]
    title: str
    message: str
    error_code: str | UnsetType
    status_code: int
    request_id: str


class Problem(msgspec.Struct, frozen=True):
    """Error sent to the client, at the upgrade or in-band."""

    status: int
    title: str
    message: str
    error_code: str | None = None


class ClientFault(Exception):  # noqa: N818 - an error of the client, not of the server
    """A client sent an invalid request."""

    def __init__(self, title: str, message: str, code: str | None = None) -> None:
        super().__init__(f"{title}: {message}")
        self.problem = Problem(400, title, message, code)


# Statuses with an error code; the others use the HTTP phrase.
_PROBLEMS: Final = {
    402: Problem(402, "Quota exceeded", "The account has no credits left.", "quota_exceeded"),
    429: Problem(
        429,
        "Concurrency limit reached",
        "Too many connections are open; close one or wait until one ends.",
        "concurrency_limited",
    ),
}


def problem_of(status: int) -> Problem:
    """Return the problem for an HTTP status. Raises ValueError if the status does not exist."""
    known = HTTPStatus(status)
    return _PROBLEMS.get(status) or Problem(status, known.phrase, known.description or known.phrase)


class Close(msgspec.Struct, frozen=True, tag_field="type", tag="close"):
    """Transcribe all received audio, then close."""


class Done(msgspec.Struct, frozen=True, tag_field="type", tag="done"):
    """The provider accepts `done` without documenting it; here it is the same as `close`."""


class ConfigTurn(msgspec.Struct, frozen=True, rename=TURN_NAMES):
    """Turn settings to change; None keeps the current value."""

    start: float | None = None
    eager_end: float | None = None
    end: float | None = None
    end_timeout_ms: float | None = None

    def over(self, turn: TurnSettings) -> TurnSettings:
        """Merge onto current settings."""
        given = msgspec.structs.asdict(self).items()
        changes = {name: value for name, value in given if value is not None}
        return msgspec.structs.replace(turn, **changes)


class Config(msgspec.Struct, frozen=True, tag_field="type", tag="config"):
    """Change turn settings for audio that follows."""

    turn: ConfigTurn | None = None


class _ConfigAck(msgspec.Struct, tag_field="type", tag="config"):
    turn: TurnSettings
    request_id: str


Command = Close | Done | Config

_encoder: Final = msgspec.json.Encoder()
_commands: Final[msgspec.json.Decoder[Command]] = msgspec.json.Decoder(Command)


def encode_connected(request_id: str) -> bytes:
    """Encode the first message of a connection."""
    return _encoder.encode(_Event("connected", UNSET, request_id))


def encode_event(event: EngineEvent, request_id: str, turn_id: str | None = None) -> bytes:
    """Encode a turn event; a missing transcript or turn id is omitted."""
    text = UNSET if event.transcript is None else event.transcript
    return _encoder.encode(_Event(event.kind, text, request_id, turn_id or UNSET))


def encode_error(problem: Problem, request_id: str) -> bytes:
    """Encode an in-band error; a missing error code is omitted."""
    code = problem.error_code or UNSET
    error = _Error("error", problem.title, problem.message, code, problem.status, request_id)
    return _encoder.encode(error)


def encode_config_ack(turn: TurnSettings, request_id: str) -> bytes:
    """Encode the answer to `config`: the current settings."""
    return _encoder.encode(_ConfigAck(turn, request_id))


def decode_command(text: str) -> Command:
    """Decode a text message.

    Raises ClientFault if it is not a known command; the error lists the commands.
    """
    try:
        return _commands.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:  # RecursionError: deep nesting
        raise ClientFault(
            "Invalid message",
            f"Expected a JSON object whose type is one of: {COMMANDS}. {error}",
        ) from error
