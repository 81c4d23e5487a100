"""The gateway: routes of the HTTP port, health checks, and the end of its calls at a stop."""

import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Final, Literal

import anyio
import msgspec
from redis.asyncio import Redis
from websockets.frames import CloseCode

from schemas import Keys
from worker.admin import CONTENT_TYPE
from worker.bus.client.connection import RedisHealth
from worker.errors import SettingsError
from worker.ingest.audiosocket import AudioSocketLimits, AudioSocketPort
from worker.ingest.calls import Call, CallLimits, CallRefusedError, Calls
from worker.ingest.counters import IngestCounters
from worker.ingest.events import EventHub, serve_events
from worker.ingest.guard import Guard, RequestRefusedError
from worker.ingest.http import (
    Exchange,
    Handler,
    Request,
    WebSocket,
    WebSocketClosedError,
    serve_http,
)
from worker.ingest.metrics import GatewayGauges, prometheus_text
from worker.ingest.pages import HEADERS, Page, console_pages
from worker.ingest.producers import read_producer
from worker.ingest.protocols import Protocol
from worker.ingest.protocols.asterisk import Asterisk
from worker.ingest.protocols.freeswitch import FreeSwitch
from worker.ingest.protocols.raw import Raw
from worker.ingest.protocols.twilio import Twilio
from worker.ingest.records import ProtocolError, Started
from worker.ingest.replies import Replies
from worker.ingest.responses import TEXT, HeaderLines
from worker.ingest.settings import IngestSettings
from worker.settings import Settings
from worker.urls import join_host_port

log = logging.getLogger(__name__)

Producer = Literal["twilio", "asterisk", "freeswitch"]
"""Producers whose first message names the session."""

PING_INTERVAL_S: Final = 1.0
"""Interval between commands that find out whether Redis answers."""

OUTAGE_UNREADY_S: Final = 3.0
"""Duration of a Redis outage after which the gateway takes no new calls."""


LAST_EVENTS_S: Final = 10.0
"""Timeout of a stopping gateway for the last events of its calls."""


class Readiness(msgspec.Struct, frozen=True):
    """Whether the gateway takes new calls, and the reasons if it does not."""

    ready: bool
    reasons: tuple[str, ...]
    calls: int
    capacity: int


class Gateway:
    """One gateway; `open` starts it."""

    port: int
    """Port of the HTTP server."""
    audiosocket: tuple[str, int] | None = None
    """Address of the AudioSocket server; None if it is off."""

    def __init__(
        self,
        settings: IngestSettings,
        redis: Redis,
        keys: Keys,
        calls: Calls,
        hub: EventHub,
        counters: IngestCounters,
        guard: Guard,
        pages: Mapping[str, Page],
        routes: Mapping[str, Handler],
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._calls = calls
        self._hub = hub
        self._counters = counters
        self._audiosocket: AudioSocketPort | None = None
        self._replies = Replies(hub, redis, keys)
        self._health = RedisHealth()
        self._guard = guard
        self._pages = pages
        self._gauges = GatewayGauges(
            counters,
            calls,
            settings.ingest_max_calls,
            lambda: self.readiness.ready,
            lambda: self._outage_s,
        )
        self._routes: dict[str, Handler] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/raw": self._raw,
            "/events": self._events,
            "/twilio": partial(self._producer, "twilio"),
            "/asterisk": partial(self._producer, "asterisk"),
            "/freeswitch": partial(self._producer, "freeswitch"),
            **dict.fromkeys(pages, self._page),
            **{path: partial(self._extra, handler) for path, handler in routes.items()},
        }

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        gateway: IngestSettings,
        redis: Redis,
        *,
        console: bool = False,
        routes: Mapping[str, Handler] | None = None,
    ) -> AsyncIterator["Gateway"]:
        """Listen, and serve until the block ends; calls that go on then are cut.

        `console` serves the page, and `routes` adds handlers by path. Raises `SettingsError` if it
        cannot listen on an address, or cannot read a file of secrets.
        """
        guard = Guard(gateway, console=console)
        counters = IngestCounters()
        limits = CallLimits(
            chunk_ms=gateway.ingest_chunk_ms,
            buffer_s=gateway.ingest_buffer_s,
            grace_s=gateway.ingest_grace_s,
            max_calls=gateway.ingest_max_calls,
        )
        async with AsyncExitStack() as stack:
            keys = Keys(settings.prefix)
            calls = await stack.enter_async_context(Calls(redis, keys, limits, counters))
            hub = await stack.enter_async_context(EventHub(redis, keys))
            pages = console_pages() if console else {}
            self = cls(gateway, redis, keys, calls, hub, counters, guard, pages, routes or {})
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(self._watch_redis)
            server = serve_http(*gateway.listen, self._handle, on_error=self._count_error)
            self.port = await stack.enter_async_context(server)
            if gateway.audiosocket is not None:
                host, port = gateway.audiosocket
                opened = _serve_audiosocket(host, port, redis, keys, calls, gateway)
                self._audiosocket = await stack.enter_async_context(opened)
                self._gauges.audiosocket = self._audiosocket
                self.audiosocket = host, self._audiosocket.port
            yield self
            tasks.cancel_scope.cancel()

    async def drain(self) -> None:
        """Take no new calls, and return once all have ended or the drain timeout is over."""
        if self._audiosocket is not None:
            await self._audiosocket.stop_accepting()
        await self._calls.drain(self._settings.ingest_drain_s)
        if self._health.up:  # without Redis no event comes
            with anyio.move_on_after(LAST_EVENTS_S):
                await self._replies.sent()

    @property
    def calls(self) -> int:
        """Number of calls that have not ended."""
        return self._calls.count

    @property
    def readiness(self) -> Readiness:
        """Whether the gateway takes new calls."""
        reasons = []
        if self._calls.draining:
            reasons.append("shutting down")
        if self._is_full:
            reasons.append("maximum of calls reached")
        if self._outage_s > OUTAGE_UNREADY_S:
            reasons.append(f"Redis is not available ({self._health.outage})")
        capacity = self._settings.ingest_max_calls
        return Readiness(not reasons, tuple(reasons), self._calls.count, capacity)

    @property
    def _is_full(self) -> bool:
        return self._calls.count >= self._settings.ingest_max_calls

    @property
    def _outage_s(self) -> float:
        return 0.0 if self._health.up else time.monotonic() - self._health.since

    async def _watch_redis(self) -> None:
        while True:
            await self._health.retry(self._redis.ping)
            await anyio.sleep(PING_INTERVAL_S)

    async def _handle(self, exchange: Exchange) -> None:
        handler = self._routes.get(exchange.request.path)
        if handler is None:
            await respond(exchange, HTTPStatus.NOT_FOUND, "there is no such path")
            return
        try:
            await handler(exchange)
        except RequestRefusedError as error:
            refusal = error.refusal
            self._counters.refused[str(refusal.status)] += 1
            log.warning("%s: a request was refused: %s", exchange.request.path, refusal.message)
            await respond(exchange, refusal.status, refusal.message, refusal.headers)
        except ProtocolError as error:
            self._counters.refused[str(HTTPStatus.BAD_REQUEST.value)] += 1
            log.warning("%s: a call was refused: %s", exchange.request.path, error)
            await respond(exchange, HTTPStatus.BAD_REQUEST, str(error))
        except CallRefusedError as error:
            log.warning("%s: a call was refused: %s", exchange.request.path, error)
            await respond(exchange, error.status, str(error))

    def _count_error(self) -> None:
        self._counters.internal_errors += 1

    # -- health

    async def _livez(self, exchange: Exchange) -> None:
        await _respond_json(exchange, HTTPStatus.OK, {"alive": True})

    async def _readyz(self, exchange: Exchange) -> None:
        state = self.readiness
        status = HTTPStatus.OK if state.ready else HTTPStatus.SERVICE_UNAVAILABLE
        await _respond_json(exchange, status, state)

    async def _metrics(self, exchange: Exchange) -> None:
        await exchange.respond(HTTPStatus.OK, prometheus_text(self._gauges), CONTENT_TYPE)

    async def _page(self, exchange: Exchange) -> None:
        self._guard.check_page(exchange.request)
        page = self._pages[exchange.request.path]
        await exchange.respond(HTTPStatus.OK, page.body, page.content_type, HEADERS)

    async def _extra(self, handler: Handler, exchange: Exchange) -> None:
        """Serve a route that was added: to those who may use the page."""
        self._guard.check(exchange.request, "console")
        await handler(exchange)

    # -- events and calls

    async def _events(self, exchange: Exchange) -> None:
        request = exchange.request
        self._guard.check(request, "events", _last(request, "session"))
        await serve_events(exchange, self._hub, self._guard.cors_headers(request))

    async def _producer(self, protocol: Producer, exchange: Exchange) -> None:
        """Serve a producer whose first message names the session."""
        request = exchange.request
        self._guard.check(request, protocol)
        self._check_room()
        parser = _parser(protocol, request)
        socket = await exchange.accept(parser.subprotocol)
        await read_producer(socket, parser, protocol, self._calls)

    def _check_room(self) -> None:
        if self._calls.draining or self._is_full:
            self._counters.refused[str(HTTPStatus.SERVICE_UNAVAILABLE.value)] += 1
            raise CallRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "no new calls are taken now")

    async def _raw(self, exchange: Exchange) -> None:
        """Serve a client whose query names the session."""
        request = exchange.request
        claims = self._guard.check(request, "raw", _last(request, "session"))
        query = {name: list(values) for name, values in request.query.items()}
        if claims is not None:
            query |= {"session": [claims.session], "lane": [claims.lane]}
        parser = Raw(query)
        if "Upgrade" not in request.headers:  # a page asks why its socket was refused
            self._check_room()
        exchange.check_handshake()
        call = self._calls.open(parser.started, "raw")
        try:
            socket = await exchange.accept()
        except BaseException:  # the end of the process
            call.disconnected(clean=not call.has_audio)
            raise
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_close_late_call, socket, call)
            if parser.events:
                with self._replies.count():
                    await self._converse(socket, parser, call)
            else:
                await read_producer(socket, parser, "raw", self._calls, call)
            tasks.cancel_scope.cancel()

    async def _converse(self, socket: WebSocket, parser: Raw, call: Call) -> None:
        """Read a client and send its events back, until its sessions have ended."""
        async with anyio.create_task_group() as tasks:

            async def send_events() -> None:
                if await self._replies.send(socket, call):
                    call.disconnected(clean=True)
                    tasks.cancel_scope.cancel()

            tasks.start_soon(send_events)
            if await read_producer(socket, parser, "raw", self._calls, call):
                await _until_closed(socket)
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def _serve_audiosocket(
    host: str, port: int, redis: Redis, keys: Keys, calls: Calls, settings: IngestSettings
) -> AsyncIterator[AudioSocketPort]:
    def open_call(started: Started) -> Call | None:
        try:
            return calls.open(started, "audiosocket")
        except CallRefusedError as error:
            log.warning("call %s: refused: %s", started.sessions[0].session, error)
            return None

    limits = AudioSocketLimits(networks=settings.audiosocket_allow)
    async with AsyncExitStack() as stack:
        served = AudioSocketPort.serve(host, port, redis, keys, open_call, limits)
        try:
            server = await stack.enter_async_context(served)
        except OSError as error:
            problem = f"cannot listen on {join_host_port(host, port)}: {error.strerror}"
            raise SettingsError([f"{problem}; choose another address"]) from None
        yield server


async def _close_late_call(socket: WebSocket, call: Call) -> None:
    """Close the socket of a client whose sessions had ended before its call."""
    await call.came_late.wait()
    reason = f"session {call.name} has ended; use a new id for each call"
    await socket.close(CloseCode.POLICY_VIOLATION, reason)


async def _until_closed(socket: WebSocket) -> None:
    try:
        while True:
            await socket.receive()
    except WebSocketClosedError:
        return


def _last(request: Request, name: str) -> str | None:
    """Return the last value of a query parameter, which counts; None without it."""
    return next(reversed(request.query.get(name, ())), None)


def _parser(protocol: Producer, request: Request) -> Protocol:
    query = {name: list(values) for name, values in request.query.items()}
    header = ",".join(request.headers.get_all("Sec-WebSocket-Protocol"))
    offered = [name.strip() for name in header.split(",")]
    match protocol:
        case "twilio":
            return Twilio()
        case "asterisk":
            return Asterisk(query, offered)
        case _:
            return FreeSwitch(query, offered)


async def respond(exchange: Exchange, status: int, line: str, headers: HeaderLines = ()) -> None:
    """Answer with one line of text."""
    await exchange.respond(status, f"{line}\n".encode(), TEXT, headers)


async def _respond_json(exchange: Exchange, status: int, content: object) -> None:
    body = msgspec.json.encode(content) + b"\n"
    await exchange.respond(status, body, "application/json")
