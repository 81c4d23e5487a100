"""A turns server that speaks the wire of Cartesia's realtime STT with turn detection.

Where the provider's documents are silent, this server chooses: it sends no pings but answers them,
declines permessage-deflate, takes messages up to 16 MiB, sets no limit to a session's length and
lets audio come at any pace. See also `handshake`, `params` and `connection`.
"""

import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self, cast

import anyio
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from worker.errors import TurnbusError
from worker.local.engines.base import Engine
from worker.local.server.connection import Connection, Seen
from worker.local.server.handshake import CONCURRENCY_LIMITED, PATH, Upgrade
from worker.local.server.messages import Fault, encode_error
from worker.local.server.params import parse_params
from worker.local.server.settings import MAX_MESSAGE, ServerSettings

_HANDSHAKE_S: Final = 5.0
_CLOSE_S: Final = 2.0  # for the client's answer to our close, before TCP is cut
_CONNECTIONS_KEPT: Final = 4_096

# At debug level websockets logs request headers, and with them keys.
_log: Final = logging.getLogger(__name__)
_log.setLevel(logging.INFO)


class TurnsServer:
    """A listening server; `serve` makes one."""

    def __init__(self, settings: ServerSettings, engine: Engine) -> None:
        self.port = settings.port
        """The port it listens on, also where the settings left it open."""
        self.connections: deque[Seen] = deque(maxlen=_CONNECTIONS_KEPT)
        """What it saw of each connection that was upgraded, oldest first; the last 4,096."""
        self._settings = settings
        self._engine = engine
        self._live: set[Connection] = set()
        self._listener: Server

    @classmethod
    @asynccontextmanager
    async def serve(cls, settings: ServerSettings, engine: Engine) -> AsyncIterator[Self]:
        """Listen until the block ends. Raises TurnbusError if the address cannot be listened on.

        The engine stays the caller's to close.
        """
        server = cls(settings, engine)
        await server._listen()
        try:
            yield server
        finally:
            with anyio.CancelScope(shield=True):
                await server.stop()

    @property
    def base_url(self) -> str:
        """What the official SDK takes as `base_url`."""
        host = self._settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def url(self) -> str:
        """The endpoint."""
        return self.base_url.replace("http:", "ws:") + PATH

    @property
    def open_connections(self) -> int:
        """How many sockets count against the cap."""
        return len(self._live)

    async def stop(self, code: int = CloseCode.GOING_AWAY, reason: str = "") -> None:
        """Stop listening, close every socket with this code and wait until all are gone."""
        self._listener.close(close_connections=False)
        for connection in self._live:
            connection.close(code, reason)
        await self._listener.wait_closed()

    async def _listen(self) -> None:
        host, port = self._settings.host, self._settings.port
        try:
            self._listener = await serve(
                self._serve_client,
                host,
                port,
                compression=None,
                max_size=MAX_MESSAGE,
                ping_interval=None,
                open_timeout=_HANDSHAKE_S,
                close_timeout=_CLOSE_S,
                process_request=self._refuse,
                process_response=_name_request,
                logger=_log,
            )
        except OSError as error:
            raise TurnbusError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        self.port = next(iter(self._listener.sockets)).getsockname()[1]

    def _refuse(self, ws: ServerConnection, request: Request) -> Response | None:
        upgrade = Upgrade(request.path, request.headers)
        refusal = upgrade.refusal(self._settings.api_keys)
        if refusal is None:
            cap = self._settings.max_connections
            if cap is None or len(self._live) < cap:
                return None
            refusal = CONCURRENCY_LIMITED
        content_type, body = upgrade.error_body(refusal, str(ws.id))
        response = ws.respond(refusal.status, body)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = content_type
        return response

    async def _serve_client(self, ws: ServerConnection) -> None:
        seen = Seen(str(ws.id))
        self.connections.append(seen)
        try:
            await self._converse(ws, seen)
        except ConnectionClosed:
            pass  # the client left before it was told what is wrong
        finally:
            with anyio.CancelScope(shield=True):
                # Does nothing to a closed socket; one that is open is so for a fault of ours.
                await ws.close(CloseCode.INTERNAL_ERROR)
            seen.closed_at = time.monotonic()
            seen.close_code = ws.close_code

    async def _converse(self, ws: ServerConnection, seen: Seen) -> None:
        request = cast("Request", ws.request)  # there since the handshake
        try:
            params = parse_params(Upgrade(request.path, request.headers).query, self._settings.turn)
        except Fault as fault:
            await ws.send(encode_error(fault, seen.request_id), text=True)
            await ws.close(CloseCode.POLICY_VIOLATION, fault.title)
            return
        seen.params = params
        connection = Connection(ws, params, seen, self._engine, self._settings.idle_timeout_s)
        self._live.add(connection)
        try:
            await connection.run()
        finally:
            self._live.discard(connection)


def _name_request(ws: ServerConnection, request: Request, response: Response) -> None:
    """Put the request id on every answer, the upgrade and what websockets itself refuses too."""
    response.headers["X-Request-Id"] = str(ws.id)
