"""Cartesia's realtime turns API, from the client's side.

The key travels in a header, never in the URL. Thresholds are sent only where somebody set them:
the service's own defaults have changed before.
"""

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

import anyio
import msgspec
from websockets.exceptions import WebSocketException

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
from worker.stt.messages import Reading, read_message
from worker.stt.proxy import Proxy, ProxyRefused
from worker.stt.websocket import HandshakeRejected, SocketClosed, WebSocketClient, open_socket
from worker.urls import provider_address

PROVIDER = "cartesia"
OPEN_TIMEOUT_S = 10.0
"""From the first packet to `connected`."""
NoteDefect = Callable[[str], None]
"""Takes what is wrong with a message that cannot be read, or in part only."""
_TRUST = "name your own authority's file as SSL_CERT_FILE"


@dataclass(frozen=True)
class Endpoint:
    """Where the service is and how to ask it."""

    url: str
    version: str
    key: str = field(repr=False)
    proxy: Proxy | None = field(default=None, repr=False)

    def redact(self, said: str) -> str:
        """Return what the service said, should it have repeated our key, without it."""
        return said.replace(self.key, "[key]") if self.key else said


class StreamSettings(msgspec.Struct, frozen=True):
    """What one connection is opened with."""

    model: str
    encoding: Encoding
    sample_rate: int
    keyterms: tuple[str, ...] = ()
    turn: TurnConfig = TurnConfig()

    def query(self) -> str:
        """Write the settings as the URL's query."""
        pairs: list[tuple[str, str]] = [
            ("model", self.model),
            ("encoding", self.encoding.value),
            ("sample_rate", str(self.sample_rate)),
            *(("keyterm", term) for term in self.keyterms),
            *(
                (name, f"{value:.12g}")
                for name, value in msgspec.structs.asdict(self.turn).items()
                if value is not None
            ),
        ]
        return urlencode(pairs)


class TurnsStream:
    """One connection that reached `connected`; made by `open_stream`."""

    def __init__(
        self,
        socket: WebSocketClient,
        request_id: str,
        service: Endpoint,
        ignored: int = 0,
        note_defect: NoteDefect = lambda _: None,
    ) -> None:
        self.socket = socket
        self.request_id = request_id
        self.ignored = ignored
        """Messages before `connected` that this version does not know."""
        self._service = service
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
        """Close the socket: politely, or at once if something went wrong."""
        if error is not None:
            self.socket.abort(type(error).__name__)
        else:
            await self.socket.aclose()

    async def receive(self) -> cartesia.ServerMessage | None:
        """Return the next message; None when the service closed with 1000, or gave no code.

        A message that cannot be read is skipped; of one that can be read in part, that is returned.
        Raises the `SttError` that a close stands for, or an error that is not about what we sent:
        a fault of the service's, the key, the credit, the plan.
        """
        message = None
        while message is None:
            try:
                message, defect = await _next_message(self.socket, self._service)
            except SocketClosed as end:
                if end.code in (1000, 1005):  # 1005: a close frame that is empty
                    return None
                raise _lost(end, self._service, self.request_id) from None
            if defect:
                self._note_defect(defect)
        if isinstance(message, cartesia.Error) and (message.status_code is not None or not defect):
            refused = _rejected(message)
            if provider_errors.is_too_big(refused.status, str(refused)):
                # The provider has dropped that message: its audio has to be sent again.
                raise SttTooBigError(
                    str(refused), status=refused.status, request_id=refused.request_id
                )
            if not 400 <= refused.status < 500 or isinstance(
                refused, SttCredentialsError | SttBusyError
            ):
                raise refused
        return message

    def send_audio(self, audio: bytes) -> None:
        """Send audio now."""
        self.socket.send_binary(audio)

    def send_close(self) -> None:
        """Ask for everything that is left, and then the end."""
        self.socket.send_text(cartesia.encode_message(cartesia.Close()))

    def send_config(self, turn: TurnConfig) -> None:
        """Change turn detection from here on."""
        self.socket.send_text(
            cartesia.encode_message(
                cartesia.Config(
                    cartesia.TurnSettings(
                        start_threshold=turn.turn_start_threshold,
                        eager_end_threshold=turn.turn_eager_end_threshold,
                        end_threshold=turn.turn_end_threshold,
                        end_timeout_ms=turn.turn_end_timeout_ms,
                    )
                )
            )
        )


async def open_stream(
    service: Endpoint, settings: StreamSettings, note_defect: NoteDefect = lambda _: None
) -> TurnsStream:
    """Connect and wait for `connected`.

    `note_defect` is called for each message of the stream that is not quite readable. Raises the
    `SttError` that a refusal stands for: of the upgrade, or in the message that comes in the place
    of `connected`.
    """
    headers = {"X-API-Key": service.key, "Cartesia-Version": service.version}
    with _provider_errors(service), anyio.fail_after(OPEN_TIMEOUT_S):
        socket = await open_socket(f"{service.url}?{settings.query()}", headers, service.proxy)
        ignored = 0
        try:
            while True:
                message, defect = await _next_message(socket, service)
                if defect:
                    note_defect(defect)
                if message is not None and not isinstance(message, cartesia.UnknownMessage):
                    break
                ignored += message is not None
            request_id = service.redact(_connected(message))
        except BaseException:
            socket.abort("not connected")
            raise
    return TurnsStream(socket, request_id, service, ignored, note_defect)


async def _next_message(socket: WebSocketClient, service: Endpoint) -> Reading:
    text = await socket.receive()
    reading = read_message(text)
    if isinstance(reading.message, cartesia.Error):  # only these may repeat the key
        reading = read_message(service.redact(text))
    return reading._replace(defect=socket.defect) if socket.defect else reading


def _lost(end: SocketClosed, service: Endpoint, request_id: str = "") -> SttError:
    reason = service.redact(end.reason)
    if end.broken:
        return SttProtocolError(reason, status=end.code, request_id=request_id)
    return provider_errors.from_close(end.code, reason, request_id=request_id)


@contextmanager
def _provider_errors(service: Endpoint) -> Iterator[None]:
    """Raise, for every way a connect can fail, the `SttError` it stands for."""
    try:
        yield
    except HandshakeRejected as refused:
        said = service.redact(refused.body.decode("utf-8", "replace"))
        raise _rejected_upgrade(refused, said) from None
    except ProxyRefused as refused:
        raise _refused_by_proxy(refused.status, service) from None
    except SocketClosed as end:
        raise _lost(end, service) from None
    except TimeoutError as error:
        said = str(error) or f"no `connected` within {OPEN_TIMEOUT_S:g} s"
        raise SttTransientError(said) from None
    except ssl.SSLError as error:
        raise SttTransientError(f"cannot connect: TLS: {tls.explain(error, _TRUST)}") from None
    except OSError as error:
        if error.errno in SHORTAGE_ERRNOS:
            raise SttShortageError(shortage_in_words(error)) from None
        raise SttTransientError(f"cannot connect: {type(error).__name__}: {error}") from None
    except (UnicodeError, WebSocketException) as error:
        # These may quote the URL, and with it key terms.
        raise SttTransientError(f"cannot connect: {type(error).__name__}") from None


def _connected(message: cartesia.ServerMessage) -> str:
    """Return the connection's request id, or raise what came in place of `connected`."""
    if isinstance(message, cartesia.Connected):
        return message.request_id or ""
    if isinstance(message, cartesia.Error):
        raise _rejected(message)
    raise SttTransientError(f"the service began with {type(message).__name__}, not with Connected")


def _rejected(error: cartesia.Error) -> SttError:
    said = ": ".join(part for part in (error.title, error.message) if part)
    return provider_errors.from_status(
        error.status_code or 500,
        said or "the service gave no reason",
        code=error.error_code or "",
        request_id=error.request_id or "",
    )


def _refused_by_proxy(status: int, service: Endpoint) -> SttError:
    """Tell a proxy that will not serve this worker from one that cannot just now."""
    where = service.proxy.address if service.proxy else ""
    variable = service.proxy.variable if service.proxy else ""
    known = {each.value: f" {each.phrase}" for each in HTTPStatus}
    message = f"the proxy {where} refuses: HTTP {status}{known.get(status, '')}"
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return SttCredentialsError(
            message, status=status, advice=f"mend user and password in {variable}"
        )
    if status == HTTPStatus.FORBIDDEN:
        host, _ = provider_address(service.url)
        advice = f"have the proxy allow {host}, or put {host} into NO_PROXY"
        return SttCredentialsError(message, status=status, advice=advice)
    return SttTransientError(
        message, status=status, advice=f"see that the proxy in {variable} works"
    )


class _ErrorBody(msgspec.Struct):
    title: str | None = None
    message: str | None = None
    error_code: str | None = None
    request_id: str | None = None


_TITLED = re.compile(r"[^<>:\n]{1,80}: \S")


def _rejected_upgrade(refused: HandshakeRejected, text: str) -> SttError:
    """Read the body: JSON from API version 2026-03-01 on, `Title: Message` before.

    Where a 400 or 404 has neither, nobody knows that the service said it, and of this session: a
    proxy or load balancer on the way may have, while it is deployed anew, and that passes.
    """
    try:
        body = msgspec.json.decode(text, type=_ErrorBody)
    except (msgspec.DecodeError, RecursionError, ValueError):
        body = _ErrorBody(message=text[:200].strip())
        known = _TITLED.match(text) is not None
    else:
        known = bool(body.title or body.message or body.error_code)
    said = ": ".join(part for part in (body.title, body.message) if part)
    message = f"HTTP {refused.status} {said}".rstrip()
    request_id = body.request_id or refused.headers.get("X-Request-Id", "")
    if refused.status in (400, 404) and not known:
        return SttTransientError(message, status=refused.status, request_id=request_id)
    return provider_errors.from_status(
        refused.status, message, code=body.error_code or "", request_id=request_id
    )
