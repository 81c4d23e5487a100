"""The HTTP port: requests and WebSockets of producers, browsers and probes. GET only.

Each request has one handler, in a task of its own; its connection closes after the answer. The
handler calls one of `respond`, `stream` and `accept`.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

import anyio
import anyio.abc
from websockets.datastructures import Headers
from websockets.frames import CloseCode
from websockets.headers import parse_subprotocol
from websockets.http11 import Request as ParsedRequest
from websockets.http11 import Response

from worker.errors import SettingsError
from worker.ingest.connection import Connection
from worker.ingest.limits import SPARE_CONNECTIONS, Limits, fit_to_system
from worker.ingest.request import BadRequestError, Request, read_request
from worker.ingest.responses import (
    TEXT,
    HeaderLines,
    plain_response,
    stream_response,
    whole_response,
)
from worker.ingest.websocket import WebSocket, WebSocketClosedError
from worker.urls import join_host_port

__all__ = [
    "Exchange", "Handler", "HandshakeRefusedError", "Limits", "PeerGoneError", "Request",
    "WebSocket", "WebSocketClosedError", "serve_http",
]  # fmt: skip

BACKLOG: Final = 1_024
"""Maximum number of connections that the system holds for this process."""

PROBE_PATHS: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Paths that are also served at `Limits.max_connections`: a full gateway is alive."""

_log = logging.getLogger(__name__)


class HandshakeRefusedError(Exception):
    """The request is no valid WebSocket handshake; it is answered. Handlers need not catch it."""


class PeerGoneError(Exception):
    """The peer closed the connection during a response. Handlers need not catch it."""


class Exchange:
    """A request and its answer."""

    def __init__(
        self, request: Request, connection: Connection, parsed: ParsedRequest, limits: Limits
    ) -> None:
        self.request = request
        self.websocket: WebSocket | None = None
        """The WebSocket, after `accept`."""
        self.is_answered = False
        self._connection = connection
        self._parsed = parsed
        self._limits = limits

    async def respond(
        self, status: int, body: bytes, content_type: str, headers: HeaderLines = ()
    ) -> None:
        """Answer with a complete response."""
        self._respond(whole_response(status, body, content_type, headers))
        await self._connection.drained()

    @asynccontextmanager
    async def stream(
        self, content_type: str, headers: HeaderLines = ()
    ) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
        """Answer with a response whose body is written in parts; its end closes the connection.

        `write` raises `PeerGoneError` once the peer is gone; a peer that does not read is dropped.
        """

        async def write(data: bytes) -> None:
            self._connection.write(data)
            await self._connection.drained()
            if self._connection.is_lost:
                raise PeerGoneError

        head = stream_response(content_type, headers)
        self.is_answered = True
        self._connection.begin_stream()
        await write(head)
        try:
            yield write
        finally:
            self._connection.finish()

    def check_handshake(self) -> Response:
        """Return the response that accepts the WebSocket; it is not sent yet.

        Raises `HandshakeRefusedError`, and answers, if the request is no valid handshake.
        """
        response = self._connection.protocol.accept(self._parsed)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            text = bytes(response.body)
            kept = [(n, v) for n, v in response.headers.raw_items() if n in {"Upgrade", "Allow"}]
            self._respond(whole_response(response.status_code, text, TEXT, kept))
            raise HandshakeRefusedError(text.decode().strip())
        return response

    async def accept(self, subprotocol: str | None = None, headers: HeaderLines = ()) -> WebSocket:
        """Accept the WebSocket; the subprotocol is echoed if the peer offers it.

        Raises `HandshakeRefusedError`.
        """
        response = self.check_handshake()
        if subprotocol is not None and subprotocol in _offered(self.request.headers):
            response.headers["Sec-WebSocket-Protocol"] = subprotocol
        response.headers.update(list(headers))
        self.is_answered = True
        self._connection.protocol.send_response(response)
        self._connection.upgraded()
        self.websocket = WebSocket(self._connection, self._limits.close_timeout_s)
        return self.websocket

    async def end(self, code: CloseCode) -> None:
        """Close what the handler left open, and answer what it did not answer."""
        if self.websocket is not None:
            await self.websocket.close(code)
        elif not self.is_answered:
            is_closing = code == CloseCode.GOING_AWAY
            status, line = (503, "shutting down") if is_closing else (500, "internal error")
            self._respond(plain_response(status, line))

    def _respond(self, response: bytes) -> None:
        self.is_answered = True
        self._connection.respond(response)


Handler = Callable[[Exchange], Awaitable[None]]


@asynccontextmanager
async def serve_http(
    host: str,
    port: int,
    handle: Handler,
    limits: Limits | None = None,
    on_error: Callable[[], None] = lambda: None,
) -> AsyncIterator[int]:
    """Serve an address and yield the port; at the end, WebSockets are closed with 1001.

    `on_error` is called after each internal error of a handler, which is logged.
    Raises `SettingsError` if it cannot listen on the address.
    """
    tasks = anyio.create_task_group()
    server = _Server(handle, fit_to_system(limits or Limits()), tasks, on_error)
    try:
        listener = await asyncio.get_running_loop().create_server(
            server.connection, host, port, backlog=BACKLOG, start_serving=False
        )
    except OSError as error:
        # asyncio's text repeats the address; a name that is not found has a negative number.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        problem = f"cannot listen on {join_host_port(host, port)}: {reason}"
        raise SettingsError([f"{problem}; choose another address or port"]) from None
    async with tasks:
        try:
            await listener.start_serving()
            tasks.start_soon(server.check_connections)
            yield int(listener.sockets[0].getsockname()[1])
        finally:
            listener.close()
            server.is_closing = True
            tasks.cancel_scope.cancel()
            server.close_unanswered()


class _Server:
    """The connections of one port."""

    def __init__(
        self,
        handle: Handler,
        limits: Limits,
        tasks: anyio.abc.TaskGroup,
        on_error: Callable[[], None],
    ) -> None:
        self.is_closing = False
        self._on_error = on_error
        self._handle = handle
        self._limits = limits
        self._tasks = tasks
        self._unanswered: dict[Connection, None] = {}  # the oldest first
        self._requested: set[Connection] = set()  # one for each handler

    def connection(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self._limits, self._opened, self._arrived, self._lost)

    def close_unanswered(self) -> None:
        """Drop the connections that have no task."""
        for connection in list(self._unanswered):
            connection.abort()

    async def check_connections(self) -> None:
        """Apply the timeouts. A process that was stopped counts as one interval: data may wait."""
        interval_s = self._limits.check_interval_s
        checked_at = time.monotonic()
        while True:
            await anyio.sleep(interval_s)
            now = time.monotonic()
            passed_s, checked_at = min(now - checked_at, 2 * interval_s), now
            for connection in [*self._unanswered, *self._requested]:
                connection.check(passed_s)

    def _opened(self, connection: Connection) -> None:
        if self.is_closing:
            connection.abort()
            return
        if len(self._unanswered) >= self._limits.max_unanswered:
            oldest = next(iter(self._unanswered))
            del self._unanswered[oldest]
            oldest.abort()
        self._unanswered[connection] = None

    def _arrived(self, connection: Connection, parsed: ParsedRequest) -> None:
        try:
            request = read_request(parsed, connection.peer)
        except BadRequestError as error:
            connection.respond(plain_response(400, str(error)))
            return
        spare = SPARE_CONNECTIONS if request.path in PROBE_PATHS else 0
        if self.is_closing or len(self._requested) >= self._limits.max_connections + spare:
            retry = [("Retry-After", "1")]
            connection.respond(plain_response(503, "too many connections are open", retry))
            return
        del self._unanswered[connection]
        self._requested.add(connection)
        exchange = Exchange(request, connection, parsed, self._limits)
        self._tasks.start_soon(self._answer, exchange, connection)

    def _lost(self, connection: Connection) -> None:
        self._unanswered.pop(connection, None)

    async def _answer(self, exchange: Exchange, connection: Connection) -> None:
        """Run the handler, then wait for the end of its connection, which `check` limits."""
        try:
            await exchange.end(await self._run(exchange))
            await connection.closed()
        finally:
            with anyio.move_on_after(self._limits.close_timeout_s, shield=True):
                await exchange.end(CloseCode.GOING_AWAY)
                await connection.closed()
            connection.abort()
            self._requested.discard(connection)

    async def _run(self, exchange: Exchange) -> CloseCode:
        """Run the handler. Its internal error ends its own connection only."""
        code = CloseCode.NORMAL_CLOSURE
        try:
            await self._handle(exchange)
        except* (HandshakeRefusedError, PeerGoneError, WebSocketClosedError):
            pass  # the peer has its answer, or is gone
        except* Exception:  # noqa: BLE001 - the other connections go on
            _log.exception("%s: internal error in the handler", exchange.request.path)
            self._on_error()
            code = CloseCode.INTERNAL_ERROR
        return code


def _offered(headers: Headers) -> list[str]:
    """Return the subprotocols of a valid handshake."""
    values = headers.get_all("Sec-WebSocket-Protocol")
    return [name for value in values for name in parse_subprotocol(value)]
