"""Deepgram Flux.

Flux accepts one unanswered `Configure`. Later settings wait for the answer to the one before.
"""

import time
from collections.abc import Sequence
from functools import partial
from urllib.parse import urlencode

import msgspec
from websockets.http11 import Response

from schemas import flux
from schemas.audio import Encoding, TurnConfig
from worker.core import provider_errors
from worker.core.turn_tracker import ProviderInput
from worker.errors import (
    SttError,
    SttPermanentError,
    SttTransientError,
    SttUnknownCommandError,
)
from worker.stt.conversion import to_s16
from worker.stt.events import (
    ConfigApplied,
    Connected,
    Event,
    NoTurnToEnd,
    TurnEvent,
    UnknownMessage,
    Warned,
)
from worker.stt.flux_messages import read_message
from worker.stt.flux_settings import changes, merged, thresholds, unusable
from worker.stt.flux_turns import FluxTurns
from worker.stt.provider import NO_NOTES, Endpoint, Notes, Provider, StreamSettings
from worker.stt.stream import Stream
from worker.stt.websocket import WebSocketClient

SAMPLE_RATES = (8_000, 16_000, 24_000, 44_100, 48_000)
ACK_TIMEOUT_S = 5.0
"""Time after which an unanswered `Configure` is given up."""

_ENCODINGS = {
    Encoding.PCM_S16LE: "linear16",
    Encoding.PCM_S32LE: "linear32",
    Encoding.PCM_MULAW: "mulaw",
    Encoding.PCM_ALAW: "alaw",
    # Converted.
    Encoding.PCM_F16LE: "linear16",
    Encoding.PCM_F32LE: "linear16",
}
_CONVERTED = frozenset({Encoding.PCM_F16LE, Encoding.PCM_F32LE})
_NO_ACTIVE_TURN = "FORCE_END_TURN_NO_ACTIVE_TURN"
_UNPARSABLE = "UNPARSABLE_CLIENT_MESSAGE"


class FluxStream(Stream):
    """One connection to Flux."""

    def __init__(
        self,
        provider: Provider,
        socket: WebSocketClient,
        endpoint: Endpoint,
        settings: StreamSettings,
        notes: Notes = NO_NOTES,
    ) -> None:
        super().__init__(provider, socket, endpoint, settings, notes)
        encoding = settings.encoding
        self._convert = partial(to_s16, encoding=encoding) if encoding in _CONVERTED else None
        self._turns = FluxTurns()
        self._config = settings.turn
        """The settings with all changes."""
        self._unsent = flux.Thresholds()
        """Settings that wait for the answer to those sent before."""
        self._configured_at: float | None = None
        """When the unanswered `Configure` was sent."""
        self._forced = False
        """Whether a `ForceEndTurn` is unanswered. An older deployment rejects it."""
        for line in unusable(settings.turn):
            notes.unusable(line)

    @classmethod
    def query(cls, settings: StreamSettings) -> str:
        """Return the settings as the URL's query string.

        Raises `SttPermanentError` for a sample rate that Flux does not take.
        """
        if settings.sample_rate not in SAMPLE_RATES:
            rates = ", ".join(map(str, SAMPLE_RATES))
            raise SttPermanentError(
                f"provider flux takes sample rates of {rates} Hz, not {settings.sample_rate}",
                status=400,
            )
        parameters = {
            "model": settings.model,
            "encoding": _ENCODINGS[settings.encoding],
            "sample_rate": settings.sample_rate,
            **msgspec.to_builtins(thresholds(settings.turn)),
            "keyterm": settings.keyterms,
            "language_hint": [settings.language] if settings.language else [],
        }
        return urlencode(parameters, doseq=True)

    @classmethod
    def headers(cls, endpoint: Endpoint) -> dict[str, str]:
        """Return the headers of the upgrade, the key among them."""
        return {"Authorization": f"Token {endpoint.key}"}

    @classmethod
    def rejected_upgrade(cls, response: Response, endpoint: Endpoint) -> SttError:
        """Return the error for an HTTP response other than 101.

        A 403 means that the model does not exist or is not available. A refusal that Flux did not
        write may be that of a proxy, and is transient.
        """
        status, headers = response.status_code, response.headers
        text = endpoint.redact(bytes(response.body or b"").decode("utf-8", "replace"))
        try:
            body = msgspec.json.decode(text, type=_ErrorBody)
        except (RecursionError, ValueError):
            body = _ErrorBody()
        reason = body.err_msg or endpoint.redact(headers.get("dg-error") or "")
        known = bool(reason or body.err_code)
        message = f"HTTP {status} {reason or text[:200].strip()}".rstrip()
        request_id = body.request_id or endpoint.redact(headers.get("dg-request-id") or "")
        code = body.err_code or ""
        if status in (400, 403, 404) and known:
            return SttPermanentError(message, status=status, code=code, request_id=request_id)
        if status in (400, 404):
            return SttTransientError(message, status=status, request_id=request_id)
        return provider_errors.from_status(status, message, code=code, request_id=request_id)

    def send_audio(self, audio: bytes) -> None:
        """Send audio now."""
        self.socket.send_binary(self._convert(audio) if self._convert else audio)

    def send_config(self, turn: TurnConfig) -> None:
        """Change turn detection for the following audio."""
        for line in unusable(turn):
            self._notes.unusable(line)
        before, self._config = self._config, self._config.merged(turn)
        self._unsent = merged(self._unsent, changes(before, turn))
        self._configure()

    def end_turn(self) -> None:
        """Request the end of the open turn."""
        self._forced = True
        self.socket.send_text(flux.encode_message(flux.ForceEndTurn()))

    def finish(self) -> None:
        """Request the remaining events and the end of the stream."""
        self.socket.send_text(flux.encode_message(flux.CloseStream()))

    def decode(self, data: bytes, defect: str) -> Sequence[Event | None]:
        """Decode one message; raise the `SttError` for an in-band error, which is always final."""
        message, unreadable = read_message(data)
        if defect or unreadable:
            self._notes.defect(defect or unreadable)
        match message:
            case flux.TurnInfo():  # most messages
                return self._turn_events(message)
            case flux.ServerWarning() if message.code == _NO_ACTIVE_TURN:
                self._forced = False
                return (*self._turns.end_open(), NoTurnToEnd())
            case None:
                return (None,)
            case _:
                return (self._event(message),)

    def _event(self, message: flux.ServerMessage) -> Event:
        """Return the event of a message that is not about a turn."""
        match message:
            case flux.Connected():
                return Connected(message.request_id or "")
            case flux.ConfigureSuccess():
                self._on_answer()
                return ConfigApplied()
            case flux.ConfigureFailure():
                self._on_answer()
                return self._warned(message.code or message.error_code, message.description)
            case flux.ServerWarning():
                return self._warned(message.code, message.description)
            case flux.Error():
                raise self._error(message.code or "", message.description or "")
            case _:
                return UnknownMessage()

    def _turn_events(self, info: flux.TurnInfo) -> Sequence[Event]:
        if self._unsent != _UNSET:
            self._configure()
        events = self._turns.events(info)
        last = events[-1]
        if isinstance(last, TurnEvent) and last.kind is ProviderInput.END:
            self._forced = self._forced and info.trigger in ("model", "timeout")
        return events

    def _warned(self, code: str | None, description: str | None) -> Warned:
        redact = self._endpoint.redact
        text = redact(description or "")
        return Warned(redact(code or "stt_error"), text or "the provider gave no reason")

    def _on_answer(self) -> None:
        """Send the settings that waited for the answer to the last ones."""
        self._configured_at = None
        self._configure()

    def _configure(self) -> None:
        """Send the settings that wait, unless others are unanswered."""
        now = time.monotonic()
        unanswered = self._configured_at is not None and now - self._configured_at < ACK_TIMEOUT_S
        if self._unsent == _UNSET or unanswered:
            return
        self.socket.send_text(flux.encode_message(flux.Configure(thresholds=self._unsent)))
        self._unsent, self._configured_at = _UNSET, now

    def _error(self, code: str, text: str) -> SttError:
        """Return the error for an in-band one, after which Flux closes the socket."""
        code, text = self._endpoint.redact(code), self._endpoint.redact(text)
        message = f"the provider reports {code or 'an error'}: {text}".rstrip(": ")
        if code != _UNPARSABLE:
            return SttTransientError(message, status=500, code=code, request_id=self.request_id)
        kind = SttUnknownCommandError if self._forced else SttPermanentError
        return kind(message, status=400, code=code, request_id=self.request_id)


FLUX = Provider(
    "flux",
    FluxStream,
    frame_ms=80.0,
    max_speed=1.25,
    word_times=True,
    forces_end=True,
    text_may_shrink=True,
    bare_text=True,
    flush_ends_turn=False,
    max_silent_ms=2_000.0,
)

_UNSET = flux.Thresholds()


class _ErrorBody(msgspec.Struct):
    err_code: str | None = None
    err_msg: str | None = None
    request_id: str | None = None
