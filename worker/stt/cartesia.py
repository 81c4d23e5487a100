"""Cartesia's realtime turns API.

Only thresholds that are set are sent: the provider has changed its defaults before.
"""

import re
from collections.abc import Sequence
from urllib.parse import urlencode

import msgspec
from websockets.http11 import Response

from schemas import cartesia
from schemas.audio import TurnConfig
from worker.core import provider_errors
from worker.core.turn_tracker import ProviderInput
from worker.errors import (
    SttBusyError,
    SttCredentialsError,
    SttError,
    SttTooBigError,
    SttTransientError,
)
from worker.stt.events import Connected, Event, ProviderError, TurnEvent, UnknownMessage
from worker.stt.messages import read_message
from worker.stt.provider import Endpoint, Provider, StreamSettings
from worker.stt.stream import Stream

_START, _RESUME = TurnEvent(ProviderInput.START), TurnEvent(ProviderInput.RESUME)


class TurnsStream(Stream):
    """One connection to the turns API."""

    @classmethod
    def query(cls, settings: StreamSettings) -> str:
        """Return the settings as the URL's query string."""
        turn = msgspec.structs.asdict(settings.turn).items()
        parameters = {
            "model": settings.model,
            "encoding": settings.encoding.value,
            "sample_rate": settings.sample_rate,
            "keyterm": settings.keyterms,
            **{name: f"{value:.12g}" for name, value in turn if value is not None},
        }
        return urlencode(parameters, doseq=True)

    @classmethod
    def headers(cls, endpoint: Endpoint) -> dict[str, str]:
        """Return the headers of the upgrade, the key among them."""
        return {"X-API-Key": endpoint.key, "Cartesia-Version": endpoint.version}

    @classmethod
    def rejected_upgrade(cls, response: Response, endpoint: Endpoint) -> SttError:
        """Return the error for an HTTP response other than 101."""
        return _rejected_upgrade(response, endpoint)

    def finish(self) -> None:
        """Request the remaining events and the end of the stream."""
        self.socket.send_text(cartesia.encode_message(cartesia.Close()))

    def send_config(self, turn: TurnConfig) -> None:
        """Change turn detection for the following audio."""
        settings = cartesia.TurnSettings(
            start_threshold=turn.turn_start_threshold,
            eager_end_threshold=turn.turn_eager_end_threshold,
            end_threshold=turn.turn_end_threshold,
            end_timeout_ms=turn.turn_end_timeout_ms,
        )
        self.socket.send_text(cartesia.encode_message(cartesia.Config(settings)))

    def decode(self, data: bytes, defect: str) -> Sequence[Event | None]:
        """Decode one message; raise the `SttError` for an error that the input did not cause."""
        return (self._event(data, defect),)

    def _event(self, data: bytes, defect: str) -> Event | None:
        message, unreadable = read_message(data)
        if isinstance(message, cartesia.Error):  # only errors may contain the key
            message, unreadable = read_message(self._endpoint.redact(data.decode()).encode())
        defect = defect or unreadable
        if defect:
            self._notes.defect(defect)
        match message:
            case cartesia.TurnUpdate():
                return TurnEvent(ProviderInput.UPDATE, message.transcript)
            case cartesia.TurnStart():
                return _START
            case cartesia.TurnEnd():
                return TurnEvent(ProviderInput.END, message.transcript)
            case cartesia.TurnEagerEnd():
                return TurnEvent(ProviderInput.EAGER_END, message.transcript)
            case cartesia.TurnResume():
                return _RESUME
            case cartesia.Error():
                return self._error(message, defect)
            case cartesia.Connected():
                return Connected(message.request_id or "")
            case cartesia.UnknownMessage():
                return UnknownMessage()
            case None:
                return None

    def _error(self, message: cartesia.Error, defect: str) -> ProviderError:
        """Return an error that the session's input may have caused; raise any other."""
        if not self.accepted:
            raise _rejected(message)
        _raise_unless_about_input(message, defect)
        return ProviderError(
            message.error_code or "stt_error",
            message.message or message.title or "the provider gave no reason",
            message.status_code or 0,
        )


CARTESIA = Provider("cartesia", TurnsStream, max_idle_s=180.0)


def _raise_unless_about_input(message: cartesia.Error, defect: str) -> None:
    """Raise the `SttError` for an in-band error after which the socket is of no use."""
    if message.status_code is None and defect:
        return
    error = _rejected(message)
    if provider_errors.is_too_big(error.status, str(error)):
        # The provider has dropped that message: its audio has to be sent again.
        raise SttTooBigError(str(error), status=error.status, request_id=error.request_id)
    about_input = 400 <= error.status < 500
    if not about_input or isinstance(error, SttCredentialsError | SttBusyError):
        raise error


def _rejected(error: cartesia.Error) -> SttError:
    message = ": ".join(part for part in (error.title, error.message) if part)
    return provider_errors.from_status(
        error.status_code or 500,
        message or "the provider gave no reason",
        code=error.error_code or "",
        request_id=error.request_id or "",
    )


class _ErrorBody(msgspec.Struct):
    title: str | None = None
    message: str | None = None
    error_code: str | None = None
    request_id: str | None = None


_TITLED = re.compile(r"[^<>:\n]{1,80}: \S")


def _rejected_upgrade(response: Response, endpoint: Endpoint) -> SttError:
    """Parse the body: JSON since API version 2026-03-01, `Title: Message` before.

    A 400 or 404 without either is transient: a proxy or load balancer may have sent it during a
    deployment, and it need not concern this session.
    """
    text = endpoint.redact(bytes(response.body or b"").decode("utf-8", "replace"))
    status = response.status_code
    try:
        body = msgspec.json.decode(text, type=_ErrorBody)
    except (msgspec.DecodeError, RecursionError, ValueError):
        body = _ErrorBody(message=text[:200].strip())
        known = _TITLED.match(text) is not None
    else:
        known = bool(body.title or body.message or body.error_code)
    detail = ": ".join(part for part in (body.title, body.message) if part)
    message = f"HTTP {status} {detail}".rstrip()
    request_id = body.request_id or response.headers.get("X-Request-Id", "")
    if status in (400, 404) and not known:
        return SttTransientError(message, status=status, request_id=request_id)
    return provider_errors.from_status(
        status, message, code=body.error_code or "", request_id=request_id
    )
