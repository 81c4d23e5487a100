"""A client of Cartesia's realtime turns API.

The key is sent in a header, never in the URL. Only thresholds that are set are sent: the provider
has changed its defaults before.
"""

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

import anyio
import msgspec
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.http11 import Response

from schemas import cartesia
from schemas.audio import Encoding, TurnConfig
from worker import tls
from worker.core import provider_errors
from worker.descriptors import shortage_in_words
from worker.errors import (
    SttBusyError,
    SttCredentialsError,
    SttError,
    SttProtocolError,
    SttShortageError,
    SttTooBigError,
    SttTransientError,
)
from worker.network import SHORTAGE_ERRNOS
from worker.stt.messages import read_message
from worker.stt.proxy import Proxy
from worker.stt.websocket import SocketClosed, WebSocketClient, open_socket

PROVIDER = "cartesia"
OPEN_TIMEOUT_S = 10.0
"""Timeout from the first packet to `connected`."""
NoteDefect = Callable[[str], None]
"""Callback with the defect of a message that is not fully readable."""
MessageHandler = Callable[[cartesia.ServerMessage | None, float, int], None]
"""Handles one message, None if its type is not readable. The other arguments are its arrival time,
and the number of messages that arrived with it and follow."""
_TRUST = "name your own authority's file as SSL_CERT_FILE"


@dataclass(frozen=True)
class Endpoint:
    """Address of the provider, with the API version, the key and the proxy."""

    url: str
    version: str
    key: str = field(repr=False)
    proxy: Proxy | None = field(default=None, repr=False)

    def redact(self, text: str) -> str:
        """Return a text of the provider with the API key in it masked."""
        return text.replace(self.key, "[key]") if self.key else text


class StreamSettings(msgspec.Struct, frozen=True):
    """Settings of one connection."""

    model: str
    encoding: Encoding
    sample_rate: int
    keyterms: tuple[str, ...] = ()
    turn: TurnConfig = TurnConfig()

    def query(self) -> str:
        """Return the settings as the URL's query string."""
        turn = msgspec.structs.asdict(self.turn).items()
        parameters = {
            "model": self.model,
            "encoding": self.encoding.value,
            "sample_rate": self.sample_rate,
            "keyterm": self.keyterms,
            **{name: f"{value:.12g}" for name, value in turn if value is not None},
        }
        return urlencode(parameters, doseq=True)


class TurnsStream:
    """One connection that reached `connected`; created by `open_stream`."""

    def __init__(
        self, socket: WebSocketClient, endpoint: Endpoint, note_defect: NoteDefect = lambda _: None
    ) -> None:
        self.socket = socket
        self.request_id = ""
        self.ignored = 0
        """Number of unknown messages before `connected`."""
        self._endpoint = endpoint
        self._note_defect = note_defect

    async def __aenter__(self) -> Self:
        """Return the stream."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the socket, without a closing handshake if there was an error."""
        if error is not None:
            self.socket.abort(type(error).__name__)
        else:
            await self.socket.aclose()

    async def listen(self, handle: MessageHandler) -> None:
        """Pass each message to `handle`, until the provider closes with 1000 or without a code.

        The socket calls `handle` when a message arrives. Of damaged messages the readable part is
        passed. Raises what `handle` raises, the `SttError` for a
        close code, and those for errors that the session's input did not cause: provider failures,
        the key, the credit, the plan.
        """

        def on_data(data: bytes, defect: str, received_at: float, waiting: int) -> None:
            message, defect = self._read(data, defect)
            if isinstance(message, cartesia.Error):
                _raise_unless_about_input(message, defect)
            handle(message, received_at, waiting)

        try:
            await self.socket.listen(on_data)
        except SocketClosed as end:
            if end.code not in (1000, 1005):  # 1005: an empty close frame
                raise _lost(end, self._endpoint, self.request_id) from None

    def send_audio(self, audio: bytes) -> None:
        """Send audio now."""
        self.socket.send_binary(audio)

    def send_close(self) -> None:
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

    async def wait_connected(self) -> None:
        """Wait for `connected`. Raises an `SttError` if the provider sends something else."""
        message: cartesia.ServerMessage | None = None
        while message is None or isinstance(message, cartesia.UnknownMessage):
            message, _ = self._read(*await self.socket.receive())
            if isinstance(message, cartesia.UnknownMessage):
                self.ignored += 1
        if isinstance(message, cartesia.Error):
            raise _rejected(message)
        if not isinstance(message, cartesia.Connected):
            found = type(message).__name__
            raise SttTransientError(f"the provider sent {found} instead of Connected")
        self.request_id = self._endpoint.redact(message.request_id or "")

    def _read(self, data: bytes, defect: str) -> tuple[cartesia.ServerMessage | None, str]:
        """Return a message and its defect; None if its type is not readable."""
        message, unreadable = read_message(data)
        if isinstance(message, cartesia.Error):  # only errors may contain the key
            message, unreadable = read_message(self._endpoint.redact(data.decode()).encode())
        defect = defect or unreadable
        if defect:
            self._note_defect(defect)
        return message, defect


async def open_stream(
    endpoint: Endpoint, settings: StreamSettings, note_defect: NoteDefect = lambda _: None
) -> TurnsStream:
    """Connect and wait for `connected`.

    `note_defect` is called for each message of the stream that is not fully readable. Raises an
    `SttError` if the provider rejects the upgrade or sends an error instead of `connected`.
    """
    headers = {"X-API-Key": endpoint.key, "Cartesia-Version": endpoint.version}
    with _connect_errors(endpoint), anyio.fail_after(OPEN_TIMEOUT_S):
        socket = await open_socket(f"{endpoint.url}?{settings.query()}", headers, endpoint.proxy)
        stream = TurnsStream(socket, endpoint, note_defect)
        try:
            await stream.wait_connected()
        except BaseException:
            socket.abort("not connected")
            raise
    return stream


def _lost(end: SocketClosed, endpoint: Endpoint, request_id: str = "") -> SttError:
    reason = endpoint.redact(end.reason)
    if end.broken:
        return SttProtocolError(reason, status=end.code, request_id=request_id)
    return provider_errors.from_close(end.code, reason, request_id=request_id)


@contextmanager
def _connect_errors(endpoint: Endpoint) -> Iterator[None]:
    """Convert every failure of a connect to an `SttError`."""
    try:
        yield
    except InvalidStatus as refused:
        raise _rejected_upgrade(refused.response, endpoint) from None
    except SocketClosed as end:
        raise _lost(end, endpoint) from None
    except TimeoutError as error:
        message = str(error) or f"no `connected` within {OPEN_TIMEOUT_S:g} s"
        raise SttTransientError(message) from None
    except ssl.SSLError as error:
        raise SttTransientError(f"cannot connect: TLS: {tls.explain(error, _TRUST)}") from None
    except OSError as error:
        if error.errno in SHORTAGE_ERRNOS:
            raise SttShortageError(shortage_in_words(error)) from None
        raise SttTransientError(f"cannot connect: {type(error).__name__}: {error}") from None
    except (UnicodeError, WebSocketException) as error:
        # These may contain the URL, and with it key terms.
        raise SttTransientError(f"cannot connect: {type(error).__name__}") from None


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
