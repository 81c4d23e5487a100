"""Control endpoint: server statistics and fault injection, on 127.0.0.1 only.

    GET /                                             server state and counters
    GET /connections?last=100                         statistics of each connection
    GET /faults/set?fault=SPEC&fault=SPEC&seed=7      replace the active faults
    GET /faults/clear                                 remove all faults
    GET /outage/start?how=refuse&for=30s              stop listening; how=503: answer with 503
    GET /outage/stop                                  end the outage
    GET /cut?how=rst                                  reset every open socket; or how=fin

Every response is JSON. Every request is a GET, because the HTTP side of websockets supports no
other method. Cross-site requests from a browser on this machine are rejected.
"""

import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Final, Literal, TypeVar
from urllib.parse import parse_qs

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus
from msgspec import Meta
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from worker.errors import SettingsError, TurnbusError
from worker.local.emulator.faults import parse_seconds
from worker.local.emulator.server import Outage, TurnsServer
from worker.local.emulator.tcp import respond

_HOST: Final = "127.0.0.1"
_LOCAL: Final = frozenset({_HOST, "localhost"})
_PATHS: Final = (
    *("/", "/connections", "/faults/set", "/faults/clear"),
    *("/outage/start", "/outage/stop", "/cut"),
)
_PATHS_TEXT: Final = ", ".join(_PATHS)

Q = TypeVar("Q")


class _Connections(msgspec.Struct, forbid_unknown_fields=True):
    last: Annotated[int, Meta(ge=1)] = 100


class _Set(msgspec.Struct, forbid_unknown_fields=True):
    fault: list[str]
    seed: Annotated[int, Meta(ge=0)] = 0


class _Start(msgspec.Struct, forbid_unknown_fields=True, rename={"for_": "for"}):
    how: Outage = "refuse"
    for_: str | None = None


class _Cut(msgspec.Struct, forbid_unknown_fields=True):
    how: Literal["rst", "fin"] = "rst"


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Problem(Exception):  # noqa: N818 - an answer
    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@asynccontextmanager
async def serve_control(server: TurnsServer, port: int) -> AsyncIterator[int]:
    """Serve the control endpoint until the block ends; yield its port.

    Port 0 selects a free one. Raises TurnbusError if the port is not available.
    """
    control = _Control(server)
    try:
        # The handler is never reached: every request gets an answer.
        listener = await serve(None, _HOST, port, process_request=control.answer)  # type: ignore[arg-type]
    except OSError as error:
        raise TurnbusError(f"cannot listen on {_HOST}:{port}: {error.strerror}") from error
    try:
        async with anyio.create_task_group() as control.tasks:
            yield next(iter(listener.sockets)).getsockname()[1]
            control.tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            listener.close()
            await listener.wait_closed()


class _Control:
    """Handles requests; `tasks` runs the outages that were started."""

    tasks: TaskGroup

    def __init__(self, server: TurnsServer) -> None:
        self._server = server
        self._outage: tuple[anyio.CancelScope, anyio.Event] | None = None

    async def answer(self, ws: ServerConnection, request: Request) -> Response:
        """Execute a request and return its response."""
        path, _, query = request.path.partition("?")
        try:
            _check_origin(request.headers)
            return _json(ws, HTTPStatus.OK, await self._do(path, query))
        except _Problem as problem:
            return _json(ws, problem.status, {"error": str(problem)})
        except (msgspec.ValidationError, SettingsError) as error:
            return _json(ws, HTTPStatus.BAD_REQUEST, {"error": str(error)})

    async def _do(self, path: str, query: str) -> object:
        match path:
            case "/":
                _read(query, _Nothing)
            case "/connections":
                last = _read(query, _Connections).last
                return [stats.report() for stats in tuple(self._server.connections)[-last:]]
            case "/faults/set":
                given = _read(query, _Set)
                self._server.faults.set(*given.fault, seed=given.seed)
            case "/faults/clear":
                _read(query, _Nothing)
                self._server.faults.clear()
            case "/outage/start":
                await self._start_outage(_read(query, _Start))
            case "/outage/stop":
                _read(query, _Nothing)
                await self._stop_outage()
            case "/cut":
                self._server.cut_all(_read(query, _Cut).how)
            case _:
                raise _Problem(HTTPStatus.NOT_FOUND, f"unknown path; the paths are {_PATHS_TEXT}")
        return self._server.state()

    async def _start_outage(self, start: _Start) -> None:
        seconds = math.inf if start.for_ is None else parse_seconds(start.for_)
        try:
            await self.tasks.start(self._run_outage, start.how, seconds)
        except TurnbusError as error:
            raise _Problem(HTTPStatus.CONFLICT, str(error)) from None

    async def _stop_outage(self) -> None:
        if self._outage is None:
            raise _Problem(HTTPStatus.CONFLICT, "no outage was started by this endpoint")
        scope, over = self._outage
        scope.cancel()
        await over.wait()

    async def _run_outage(
        self, how: Outage, seconds: float, *, task_status: TaskStatus[None]
    ) -> None:
        over = anyio.Event()
        with anyio.CancelScope() as scope:
            async with self._server.outage(how):
                self._outage = scope, over
                task_status.started()
                await anyio.sleep(seconds)
        self._outage = None
        over.set()


def _read(query: str, kind: type[Q]) -> Q:
    values = parse_qs(query, keep_blank_values=True)
    given = {name: found if name == "fault" else found[-1] for name, found in values.items()}
    return msgspec.convert(given, kind, strict=False)


def _check_origin(headers: Headers) -> None:
    """Reject cross-site requests from a browser."""
    hosts = {re.sub(r":\d+$", "", host) for host in headers.get_all("Host")}
    sites = set(headers.get_all("Sec-Fetch-Site"))
    if not hosts or not hosts <= _LOCAL or not sites <= {"none", "same-origin"}:
        raise _Problem(HTTPStatus.FORBIDDEN, "only programs on this machine may send requests")


def _json(ws: ServerConnection, status: HTTPStatus, content: object) -> Response:
    response = respond(ws, status, msgspec.json.encode(content).decode() + "\n")
    response.headers["Cache-Control"] = "no-store"
    return response
