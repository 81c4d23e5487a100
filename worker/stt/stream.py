"""One connection to a provider: the part that is the same for all of them.

The key is sent in a header, never in the URL.
"""

import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import anyio
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.http11 import Response

from schemas.audio import TurnConfig
from worker import tls
from worker.core import provider_errors
from worker.descriptors import shortage_in_words
from worker.errors import SttError, SttProtocolError, SttShortageError, SttTransientError
from worker.network import SHORTAGE_ERRNOS
from worker.stt.events import Connected, Event, UnknownMessage
from worker.stt.provider import NO_NOTES, Endpoint, Notes, Provider, StreamSettings
from worker.stt.websocket import SocketClosed, WebSocketClient, open_socket

OPEN_TIMEOUT_S = 10.0
"""Timeout from the first packet until the provider has accepted the settings."""

EventHandler = Callable[[Event | None, float, int], None]
"""Handles one event, None if its message is not readable. The other arguments are the arrival time
of the message, and the number of messages that arrived with it and follow."""

_TRUST = "name your own authority's file as SSL_CERT_FILE"


class Stream(ABC):
    """One connection that the provider has accepted; opened by `Provider.open`."""

    def __init__(
        self,
        provider: Provider,
        socket: WebSocketClient,
        endpoint: Endpoint,
        settings: StreamSettings,
        notes: Notes = NO_NOTES,
    ) -> None:
        self.provider = provider
        self.socket = socket
        self.request_id = ""
        self.ignored = 0
        """Number of unknown messages before the connection was accepted."""
        self.accepted = False
        """Whether the provider has accepted the settings."""
        self._endpoint = endpoint
        self._settings = settings
        self._notes = notes

    # -- the provider's protocol

    @classmethod
    @abstractmethod
    def query(cls, settings: StreamSettings) -> str:
        """Return the settings as the URL's query string."""

    @classmethod
    @abstractmethod
    def headers(cls, endpoint: Endpoint) -> dict[str, str]:
        """Return the headers of the upgrade, the key among them."""

    @classmethod
    @abstractmethod
    def rejected_upgrade(cls, response: Response, endpoint: Endpoint) -> SttError:
        """Return the error for an HTTP response other than 101."""

    @abstractmethod
    def decode(self, data: bytes, defect: str) -> Sequence[Event | None]:
        """Decode one message to its events, None if its type is not readable; note its defect.

        Raises an `SttError` for an error after which the socket is of no use, and for every error
        before the connection is accepted.
        """

    @abstractmethod
    def send_config(self, turn: TurnConfig) -> None:
        """Change turn detection for the following audio."""

    @abstractmethod
    def finish(self) -> None:
        """Request the remaining events and the end of the stream."""

    def end_turn(self) -> None:
        """Request the end of the open turn. Only for a provider that `forces_end`."""
        raise NotImplementedError

    # -- the same for all

    def send_audio(self, audio: bytes) -> None:
        """Send audio now."""
        self.socket.send_binary(audio)

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

    async def listen(self, handle: EventHandler) -> None:
        """Pass each event to `handle`, until the provider closes with 1000 or without a code.

        The socket calls `handle` when a message arrives. Of damaged messages the readable part is
        passed. Raises what `handle` raises, the `SttError` for a close code, and those for errors
        that the session's input did not cause: provider failures, the key, the credit, the plan.
        """
        decode = self.decode

        def on_data(data: bytes, defect: str, received_at: float, waiting: int) -> None:
            for event in decode(data, defect):
                handle(event, received_at, waiting)

        try:
            await self.socket.listen(on_data)
        except SocketClosed as end:
            if end.code not in (1000, 1005):  # 1005: an empty close frame
                raise _lost(end, self._endpoint, self.request_id) from None

    async def wait_connected(self) -> None:
        """Wait for `Connected`. Raises an `SttError` if the provider sends something else."""
        event: Event | None = None
        while event is None or isinstance(event, UnknownMessage):
            event = self.decode(*await self.socket.receive())[-1]
            if isinstance(event, UnknownMessage):
                self.ignored += 1
        if not isinstance(event, Connected):
            found = type(event).__name__
            raise SttTransientError(f"the provider sent {found} instead of Connected")
        self.accepted = True
        self.request_id = self._endpoint.redact(event.request_id)

    @classmethod
    async def open(
        cls,
        provider: Provider,
        endpoint: Endpoint,
        settings: StreamSettings,
        notes: Notes = NO_NOTES,
    ) -> Self:
        """Connect, and wait until the provider has accepted the settings."""
        url, headers = f"{endpoint.url}?{cls.query(settings)}", cls.headers(endpoint)
        with _connect_errors(cls, endpoint), anyio.fail_after(OPEN_TIMEOUT_S):
            socket = await open_socket(url, headers, endpoint.proxy)
            stream = cls(provider, socket, endpoint, settings, notes)
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
def _connect_errors(kind: type[Stream], endpoint: Endpoint) -> Iterator[None]:
    """Convert every failure of a connect to an `SttError`."""
    try:
        yield
    except InvalidStatus as refused:
        raise kind.rejected_upgrade(refused.response, endpoint) from None
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
