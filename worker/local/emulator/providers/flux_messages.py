"""JSON of Deepgram Flux: messages the server writes, and the commands it reads.

This module is separate from `schemas.flux`, the lenient definition that clients use. With one
shared definition, tests could not detect a mistake in it.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from worker.local.emulator.engines.base import EventKind, Word
from worker.local.emulator.messages import ClientFault, Problem
from worker.local.emulator.turn_info import TurnInfo

_EVENTS: Final[dict[EventKind, str]] = {
    "turn.update": "Update",
    "turn.start": "StartOfTurn",
    "turn.eager_end": "EagerEndOfTurn",
    "turn.resume": "TurnResumed",
    "turn.end": "EndOfTurn",
}
_ERROR_CODES: Final = {
    400: "INVALID_QUERY_PARAMETER",
    401: "INVALID_AUTH",
    402: "ASR_PAYMENT_REQUIRED",
    403: "INSUFFICIENT_PERMISSIONS",
    429: "TOO_MANY_REQUESTS",
    500: "INTERNAL_SERVER_ERROR",
}


class Thresholds(msgspec.Struct, frozen=True, omit_defaults=True):
    """Turn detection in force; without an eager threshold there are no eager ends."""

    eager_eot_threshold: float | None = None
    eot_threshold: float | UnsetType = UNSET
    eot_timeout_ms: int | UnsetType = UNSET


class Configuration(msgspec.Struct, frozen=True):
    """Everything that `Configure` can change, as `ConfigureSuccess` reports it."""

    thresholds: Thresholds
    keyterms: tuple[str, ...] = ()
    language_hints: tuple[str, ...] = ()
    numerals: bool = False


class _Connected(msgspec.Struct, tag_field="type", tag="Connected"):
    request_id: str
    sequence_id: int


class _Word(msgspec.Struct):
    word: str
    confidence: float
    start: float | UnsetType = UNSET
    end: float | UnsetType = UNSET


class _TurnInfo(msgspec.Struct, tag_field="type", tag="TurnInfo"):
    request_id: str
    sequence_id: int
    event: str
    turn_index: int
    audio_window_start: float
    audio_window_end: float
    transcript: str
    words: list[_Word]
    end_of_turn_confidence: float
    trigger: str | UnsetType
    languages: Sequence[str] | UnsetType
    languages_hinted: Sequence[str] | UnsetType


class _ConfigureSuccess(msgspec.Struct, tag_field="type", tag="ConfigureSuccess"):
    request_id: str
    sequence_id: int
    thresholds: Thresholds
    keyterms: tuple[str, ...]
    language_hints: tuple[str, ...]
    numerals: bool


class _Notice(msgspec.Struct, tag_field="type"):
    request_id: str
    sequence_id: int
    code: str
    description: str


class _ConfigureFailure(_Notice, tag="ConfigureFailure"):
    pass


class _Warning(_Notice, tag="Warning"):
    pass


class _Error(msgspec.Struct, tag_field="type", tag="Error"):
    sequence_id: int
    code: str
    description: str


class FluxEncoder:
    """Encodes the messages of one connection; each gets the next `sequence_id`."""

    def __init__(
        self,
        request_id: str,
        *,
        word_times: bool,
        trigger: bool,
        languages: Sequence[str] | None,
    ) -> None:
        self.languages_hinted: Sequence[str] = ()
        self._request_id = request_id
        self._word_times = word_times
        self._trigger = trigger
        self._languages = languages
        self._sent = 0

    def connected(self) -> bytes:
        """Encode the first message."""
        return _encode(_Connected(self._request_id, self._next()))

    def turn_info(self, info: TurnInfo) -> bytes:
        """Encode an event of a turn."""
        ends = info.kind == "turn.end" and self._trigger
        multi = self._languages is not None
        message = _TurnInfo(
            request_id=self._request_id,
            sequence_id=self._next(),
            event=_EVENTS[info.kind],
            turn_index=info.turn_index,
            audio_window_start=info.window_start_s,
            audio_window_end=info.decoded_s,
            transcript=info.transcript or "",
            words=[self._word(word) for word in info.words],
            end_of_turn_confidence=round(info.end_likelihood, 6),
            trigger=info.trigger if ends else UNSET,
            languages=(self._languages or ()) if multi and info.words else () if multi else UNSET,
            languages_hinted=self.languages_hinted if multi else UNSET,
        )
        return _encode(message)

    def configured(self, now: Configuration) -> bytes:
        """Encode the reply to a `Configure` that took effect."""
        return _encode(
            _ConfigureSuccess(
                self._request_id,
                self._next(),
                now.thresholds,
                now.keyterms,
                now.language_hints,
                now.numerals,
            )
        )

    def not_configured(self, code: str, description: str) -> bytes:
        """Encode the reply to a `Configure` that changed nothing."""
        return _encode(_ConfigureFailure(self._request_id, self._next(), code, description))

    def warning(self, code: str, description: str) -> bytes:
        """Encode a warning."""
        return _encode(_Warning(self._request_id, self._next(), code, description))

    def error(self, problem: Problem) -> bytes:
        """Encode a fatal error."""
        return _encode(_Error(self._next(), error_code(problem), problem.message))

    def _word(self, word: Word) -> _Word:
        if not self._word_times:
            return _Word(word.text, word.confidence)
        return _Word(word.text, word.confidence, word.start_s, word.end_s)

    def _next(self) -> int:
        self._sent += 1
        return self._sent - 1


def error_code(problem: Problem) -> str:
    """Return the code of a problem in this protocol, at the upgrade or in-band."""
    if problem.error_code is not None and problem.error_code.isupper():
        return problem.error_code
    if problem.status >= 500:
        return _ERROR_CODES[500]
    return _ERROR_CODES.get(problem.status, problem.title.upper().replace(" ", "_"))


class CloseStream(msgspec.Struct, frozen=True, tag_field="type"):
    """Transcribe all received audio, then close."""


class ForceEndTurn(msgspec.Struct, frozen=True, tag_field="type"):
    """End the open turn now."""


class ConfigureThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Thresholds to change; None keeps the current value."""

    eager_eot_threshold: float | None = None
    eot_threshold: float | None = None
    eot_timeout_ms: int | None = None


class Configure(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """Change the configuration, all of it or nothing; None keeps the current value.

    Pipecat sends `profanity_filter`, which Deepgram's schema does not list. It has no effect.
    """

    thresholds: ConfigureThresholds | None = None
    keyterms: tuple[str, ...] | None = None
    language_hints: tuple[str, ...] | None = None
    numerals: bool | None = None
    profanity_filter: bool | None = None


OlderCommand = CloseStream | Configure
Command = OlderCommand | ForceEndTurn

_encode: Final = msgspec.json.Encoder().encode
_commands: Final[msgspec.json.Decoder[Command]] = msgspec.json.Decoder(Command)
_older_commands: Final[msgspec.json.Decoder[OlderCommand]] = msgspec.json.Decoder(OlderCommand)


def decode_command(text: str, *, force_end_turn: bool = True) -> Command:
    """Decode a text message; `ForceEndTurn` may be unknown, as to older deployments.

    Raises ClientFault if it is not a known command.
    """
    try:
        return _commands.decode(text) if force_end_turn else _older_commands.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:  # RecursionError: deep nesting
        raise ClientFault(
            "Unparsable client message",
            f"Send a JSON object whose type is a known command. {error}",
            "UNPARSABLE_CLIENT_MESSAGE",
        ) from error
