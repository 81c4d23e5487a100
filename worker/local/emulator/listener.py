"""Where the server listens: sockets that an outage closes, and opens again on the same ports."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from anyio.lowlevel import checkpoint
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.protocol import State

from worker.errors import TurnbusError
from worker.local.emulator.tcp import GRACE_S
from worker.urls import join_host_port

# At debug level websockets logs request headers, and with them keys.
_log: Final = logging.getLogger(__name__)
_log.setLevel(logging.INFO)

_HANDSHAKE_S: Final = (
    30.0  # longer than clients wait: a handshake without an answer is theirs to end
)
_BACKLOG: Final = 1_024


class Listener:
    """Accepts connections; `start` makes it listen."""

    def __init__(
        self,
        handle: Callable[[ServerConnection], Awaitable[None]],
        refuse: Callable[[ServerConnection, Request], Awaitable[Response | None]],
        max_message: int,
        ping_s: float | None,
    ) -> None:
        self._guests: set[ServerConnection] = set()
        self._serve = partial(
            serve,
            handle,
            create_connection=_registering(self._guests),
            compression=None,
            max_size=max_message,
            ping_interval=ping_s,
            ping_timeout=ping_s,
            open_timeout=_HANDSHAKE_S,
            close_timeout=GRACE_S,
            process_request=refuse,
            process_response=_name_request,
            logger=_log,
            backlog=_BACKLOG,
        )
        self._servers: list[Server] = []
        self._held: list[socket.socket] = []

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port.

        Raises TurnbusError if the address cannot be listened on.
        """
        try:
            server = await self._serve(host, port)
        except OSError as error:
            where = join_host_port(host, port)
            raise TurnbusError(f"cannot listen on {where}: {error.strerror}") from error
        self._servers.append(server)
        return int(next(iter(server.sockets)).getsockname()[1])

    async def pause(self) -> None:
        """Refuse connections. Those that are open stay so."""
        listening = [server for server in self._servers if server.is_serving()]
        addresses = [(s.family, s.getsockname()) for server in listening for s in server.sockets]
        for server in listening:
            server.close(close_connections=False)
        while any(server.is_serving() for server in listening):
            await checkpoint()
        # The port stays ours: another program, or a client that dials it, could be given it.
        self._held = [_bound(family, address) for family, address in addresses]

    async def resume(self) -> None:
        """Listen again where it did."""
        while self._held:
            self._servers.append(await self._serve(sock=self._held.pop()))

    def unanswered(self) -> list[ServerConnection]:
        """Return the connections whose handshake is not over."""
        return [guest for guest in self._guests if guest.state is State.CONNECTING]

    def close(self) -> None:
        """Stop listening for good."""
        while self._held:
            self._held.pop().close()
        for server in self._servers:
            server.close(close_connections=False)

    async def wait_closed(self) -> None:
        """Wait until the last connection is gone."""
        for server in self._servers:
            await server.wait_closed()


def _registering(guests: set[ServerConnection]) -> type[ServerConnection]:
    """Make connections that are in `guests` from the first byte on, not only once upgraded."""

    class Guest(ServerConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            guests.add(self)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            guests.discard(self)

    return Guest


def _bound(family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(address)
    return sock


def _name_request(ws: ServerConnection, request: Request, response: Response) -> None:
    """Put the request id on every answer, the upgrade and what websockets itself refuses too."""
    response.headers["X-Request-Id"] = str(ws.id)
