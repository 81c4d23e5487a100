"""TCP: the listening sockets, and the faults of a connection below its WebSocket.

An outage closes the listening sockets and opens them again on the same ports.
"""

import asyncio
import logging
import math
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, cast

import anyio
from anyio.lowlevel import checkpoint
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event, State
from websockets.typing import Subprotocol

from worker.errors import TurnbusError
from worker.urls import join_host_port

# At debug level websockets logs request headers, which contain API keys.
_log: Final = logging.getLogger(__name__)
_log.setLevel(logging.INFO)

GRACE_S: Final = 2.0
"""Timeout before a reset for the client to answer a close frame or the end of the stream."""

_HANDSHAKE_S: Final = 30.0  # longer than clients wait: the client ends an unanswered handshake
_BACKLOG: Final = 1_024
_NO_LINGER: Final = struct.pack("ii", 1, 0)  # makes closing a TCP socket a reset


def reset(ws: ServerConnection) -> None:
    """Reset the connection, if it is open: data in transit is dropped."""
    if not ws.transport.is_closing():
        sock = ws.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    ws.transport.abort()


def end(ws: ServerConnection) -> None:
    """End the server's side of the stream, without a close frame, if it is open."""
    if not ws.transport.is_closing():
        ws.transport.write_eof()


def stop_reading(ws: ServerConnection) -> None:
    """Read nothing more; pings are not answered either."""
    if not ws.transport.is_closing():
        ws.transport.pause_reading()


async def outlast(ws: ServerConnection, patience_s: float) -> None:
    """Wait until the client disconnects; reset the connection after `patience_s` seconds."""
    with anyio.move_on_after(patience_s):
        await ws.wait_closed()
    reset(ws)
    await ws.wait_closed()


async def close(ws: ServerConnection, code: int, reason: str = "") -> None:
    """Send a close frame, without a code if `code` is 1005, and wait for the answer."""
    if code == CloseCode.NO_STATUS_RCVD:
        # `close` passes the code to `send_close`, where None is an empty frame.
        await ws.close(cast("int", None))
    else:
        await ws.close(code, reason)


def write_part(ws: ServerConnection, message: bytes, size: int) -> None:
    """Write the beginning of a text message, up to byte `size` of its payload."""
    frame = Frame(Opcode.TEXT, message).serialize(mask=False)
    ws.transport.write(frame[: len(frame) - len(message) + size])


def pinged_at(ws: ServerConnection) -> float:
    """Return the time of the last ping received, in seconds of `time.monotonic`."""
    return ws.pinged_at if isinstance(ws, _Socket) else -math.inf


def respond(
    ws: ServerConnection,
    status: int,
    body: str,
    headers: Headers = Headers({"Content-Type": "application/json"}),  # noqa: B008 - not changed
) -> Response:
    """Return the HTTP response to a request."""
    response = ws.respond(status, body)
    for name, value in headers.items():
        if name in response.headers:
            del response.headers[name]
        response.headers[name] = value
    return response


class Listener:
    """Accepts connections; `start` makes it listen."""

    def __init__(
        self,
        handle: Callable[[ServerConnection], Awaitable[None]],
        refuse: Callable[[ServerConnection, Request], Awaitable[Response | None]],
        identify: Callable[[Headers, str], None],
        subprotocols: tuple[str, ...],
        max_message: int,
        ping_s: float | None,
    ) -> None:
        self._connections: set[ServerConnection] = set()
        self._serve = partial(
            serve,
            handle,
            create_connection=_registering(self._connections),
            compression=None,
            max_size=max_message,
            ping_interval=ping_s,
            ping_timeout=ping_s,
            open_timeout=_HANDSHAKE_S,
            close_timeout=GRACE_S,
            process_request=refuse,
            process_response=partial(_identify, identify),
            select_subprotocol=partial(_select_subprotocol, subprotocols),
            logger=_log,
            backlog=_BACKLOG,
        )
        self._servers: list[Server] = []
        self._reserved: list[socket.socket] = []

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port.

        Raises TurnbusError if the address is not available.
        """
        try:
            server = await self._serve(host, port)
        except OSError as error:
            where = join_host_port(host, port)
            raise TurnbusError(f"cannot listen on {where}: {error.strerror}") from error
        self._servers.append(server)
        return int(next(iter(server.sockets)).getsockname()[1])

    async def pause(self) -> None:
        """Refuse new connections. Open connections stay open."""
        listening = [server for server in self._servers if server.is_serving()]
        addresses = [(s.family, s.getsockname()) for server in listening for s in server.sockets]
        for server in listening:
            server.close(close_connections=False)
        while any(server.is_serving() for server in listening):
            await checkpoint()
        # Keep the port bound: the OS could assign it to another program or to a client.
        self._reserved = [_bound(family, address) for family, address in addresses]

    async def resume(self) -> None:
        """Listen again on the same ports."""
        while self._reserved:
            self._servers.append(await self._serve(sock=self._reserved.pop()))

    def unanswered(self) -> list[ServerConnection]:
        """Return the connections whose handshake is not complete."""
        return [
            connection for connection in self._connections if connection.state is State.CONNECTING
        ]

    def close(self) -> None:
        """Stop listening permanently."""
        while self._reserved:
            self._reserved.pop().close()
        for server in self._servers:
            server.close(close_connections=False)

    async def wait_closed(self) -> None:
        """Wait until the last connection is closed."""
        for server in self._servers:
            await server.wait_closed()


class _Socket(ServerConnection):
    """A connection that keeps the time of the last ping received."""

    pinged_at = -math.inf

    def process_event(self, event: Event) -> None:
        super().process_event(event)
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.pinged_at = time.monotonic()


def _registering(connections: set[ServerConnection]) -> type[ServerConnection]:
    """Return a connection class whose instances are in `connections` before the upgrade, too."""

    class Registered(_Socket):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            connections.add(self)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            connections.discard(self)

    return Registered


def _bound(family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(address)
    return sock


def _identify(
    identify: Callable[[Headers, str], None],
    ws: ServerConnection,
    request: Request,
    response: Response,
) -> None:
    """Add the request id to every response, including those websockets creates itself."""
    identify(response.headers, str(ws.id))


def _select_subprotocol(
    known: tuple[str, ...], ws: ServerConnection, offered: Sequence[Subprotocol]
) -> Subprotocol | None:
    return next((name for name in offered if name in known), None)
