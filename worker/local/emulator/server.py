"""STT server that implements the protocol of Cartesia's turns API, or of Deepgram Flux.

Where the providers' documentation leaves a choice, this server declines permessage-deflate. It
accepts audio at any pace unless a fault limits it. See also `settings`, `providers` and
`connection`.
"""

import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal, Self, cast

import anyio
import msgspec
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from worker.errors import TurnbusError
from worker.local.emulator import tcp
from worker.local.emulator.connection import Connection
from worker.local.emulator.connection_stats import ConnectionStats
from worker.local.emulator.engines.base import Engine
from worker.local.emulator.fault_plan import ConnectionFaults, FaultSet
from worker.local.emulator.faults import CloseFrame, Cut, HalfOpen, HttpRefusal
from worker.local.emulator.messages import ClientFault, Problem, problem_of
from worker.local.emulator.providers import provider_of
from worker.local.emulator.settings import ServerSettings
from worker.local.emulator.tcp import Listener
from worker.urls import join_host_port

_CONNECTIONS_KEPT: Final = 4_096

Outage = Literal["refuse", "503"]
"""Kind of outage: connections are refused, or upgrades are answered with 503."""


class ApplyResult(msgspec.Struct, frozen=True):
    """An active fault, and the number of connections it was applied to."""

    fault: str
    connections: int


class State(msgspec.Struct, frozen=True, kw_only=True):
    """State of the server, as the control endpoint returns it; counts are since the start."""

    url: str
    outage: Outage | None
    faults: tuple[ApplyResult, ...]
    open: int
    upgraded: int
    refused: dict[str, int]
    """Number of refused upgrades by HTTP status."""
    closed: dict[str, int]
    """Number of closed connections by close code; 1006 if TCP ended without one."""


class TurnsServer:
    """A listening server; `serve` makes one."""

    def __init__(self, settings: ServerSettings, engine: Engine) -> None:
        self.port = settings.port
        """Port the server listens on, also if the settings have port 0."""
        self.faults = FaultSet()
        """Active faults; initially none."""
        self.connections: deque[ConnectionStats] = deque(maxlen=_CONNECTIONS_KEPT)
        """Statistics of the last 4,096 upgraded connections, oldest first."""
        self._settings = settings
        self._provider = provider_of(settings)
        self._engine = engine
        self._live: set[Connection] = set()
        self._outage: Outage | None = None
        self._stopped = False
        self._upgraded = 0
        self._refused: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()
        self._listener = Listener(
            self._serve_client,
            self._refuse,
            self._provider.identify,
            self._provider.subprotocols,
            settings.max_message,
            settings.ping_s,
        )

    @classmethod
    @asynccontextmanager
    async def serve(cls, settings: ServerSettings, engine: Engine) -> AsyncIterator[Self]:
        """Listen until the block ends. Raises TurnbusError if the address is not available.

        The caller closes the engine.
        """
        server = cls(settings, engine)
        server.port = await server._listener.start(settings.host, settings.port)
        try:
            yield server
        finally:
            with anyio.CancelScope(shield=True):
                await server.stop()

    @property
    def base_url(self) -> str:
        """Value for `base_url` of the official SDK."""
        return f"http://{join_host_port(self._settings.host, self.port)}"

    @property
    def url(self) -> str:
        """URL of the WebSocket endpoint."""
        return self.base_url.replace("http:", "ws:") + self._provider.path

    @property
    def open_connections(self) -> int:
        """Number of sockets that count against `max_connections`."""
        return len(self._live)

    def state(self) -> State:
        """Return the state for JSON output."""
        return State(
            url=self.url,
            outage=self._outage,
            faults=tuple(
                ApplyResult(each.fault.spec, each.applied) for each in self.faults.standing
            ),
            open=len(self._live),
            upgraded=self._upgraded,
            refused=dict(self._refused),
            closed=dict(self._closed),
        )

    def cut_all(self, how: Literal["rst", "fin"] = "rst") -> int:
        """Cut the TCP connection of every open socket now; return how many there were."""
        live = tuple(self._live)
        for connection in live:
            connection.end(Cut(how))
        for ws in self._listener.unanswered():
            tcp.reset(ws)
        return len(live)

    @asynccontextmanager
    async def outage(self, how: Outage = "refuse") -> AsyncIterator[None]:
        """Refuse new connections until the block ends. Open sockets stay; `cut_all` cuts them.

        Raises TurnbusError if an outage is already running.
        """
        if self._outage is not None:
            raise TurnbusError("an outage is already running")
        self._outage = how
        if how == "refuse":
            await self._listener.pause()
        try:
            yield
        finally:
            self._outage = None
            if how == "refuse" and not self._stopped:
                with anyio.CancelScope(shield=True):
                    await self._listener.resume()

    async def stop(self, code: int = CloseCode.GOING_AWAY, reason: str = "") -> None:
        """Stop listening, close every socket with this code and wait until all are closed."""
        self._stopped = True
        self._listener.close()
        for connection in tuple(self._live):
            connection.end(CloseFrame(code, reason))
        for ws in self._listener.unanswered():
            tcp.reset(ws)
        await self._listener.wait_closed()

    async def _refuse(self, ws: ServerConnection, request: Request) -> Response | None:
        """Return an HTTP response that refuses the upgrade; None to accept it."""
        problem = problem_of(503) if self._outage else self._problem(request)
        if problem is not None:
            return None if self._refused_in_band(problem) else self._http(ws, request, problem)
        match self.faults.at_upgrade():
            case HttpRefusal(problem):
                return self._http(ws, request, problem)
            case Cut("rst"):
                await tcp.outlast(ws, 0)
            case Cut("fin"):
                tcp.end(ws)
                await tcp.outlast(ws, tcp.GRACE_S)
            case HalfOpen():
                tcp.stop_reading(ws)
                await ws.wait_closed()  # or until the listener's handshake timeout
        return None

    def _problem(self, request: Request) -> Problem | None:
        if problem := self._provider.problem(request):
            return problem
        cap = self._settings.max_connections
        return problem_of(429) if cap is not None and len(self._live) >= cap else None

    def _refused_in_band(self, problem: Problem) -> bool:
        return self._settings.refuse_in_band and problem.status not in (404, 503)

    def _http(self, ws: ServerConnection, request: Request, problem: Problem) -> Response:
        self._refused[str(problem.status)] += 1
        headers, body = self._provider.refusal(problem, request, str(ws.id))
        return tcp.respond(ws, problem.status, body, headers)

    async def _serve_client(self, ws: ServerConnection) -> None:
        plan = self.faults.plan()
        stats = ConnectionStats(str(ws.id), plan.applied)
        self.connections.append(stats)
        self._upgraded += 1
        try:
            await self._serve_upgraded(ws, stats, plan)
        except ConnectionClosed:
            pass  # the client disconnected before the error was sent
        finally:
            with anyio.CancelScope(shield=True):
                # No effect on a closed socket. A socket is open here only after an internal error.
                await ws.close(CloseCode.INTERNAL_ERROR)
            stats.closed_at = time.monotonic()
            stats.close_code = ws.close_code
            self._closed[str(ws.close_code)] += 1

    async def _serve_upgraded(
        self, ws: ServerConnection, stats: ConnectionStats, plan: ConnectionFaults
    ) -> None:
        request = cast("Request", ws.request)  # set by the handshake
        settings = self._settings
        session = self._provider.session(request, stats.request_id)
        problem = self._problem(request) if settings.refuse_in_band else None
        try:
            params = session.open()
        except ClientFault as fault:
            problem = problem or fault.problem
        if problem is not None:
            await ws.send(session.encode_error(problem), text=True)
            await ws.close(CloseCode.POLICY_VIOLATION, problem.title)
            return
        stats.params = params
        connection = Connection(
            ws, self._provider, session, params, stats, plan, self._engine, settings
        )
        self._live.add(connection)
        try:
            await connection.run()
        finally:
            self._live.discard(connection)
