"""HTTP endpoints of a worker: health checks and metrics.

`/livez` answers while the event loop runs. `/readyz` reports why the worker takes no new sessions.
`/metrics` is Prometheus text.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from worker.errors import SettingsError
from worker.urls import join_host_port

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of the Prometheus text format."""


class Readiness(msgspec.Struct, frozen=True):
    """Whether the worker can take new sessions, and the reasons if it cannot."""

    ready: bool
    reasons: tuple[str, ...]
    sessions: int
    capacity: int


@asynccontextmanager
async def serve_admin(
    address: tuple[str, int],
    readiness: Callable[[], Readiness],
    metrics: Callable[[], bytes] = bytes,
) -> AsyncIterator[int]:
    """Serve health checks and metrics on `address` and yield the port.

    Raises `SettingsError` if it cannot listen on the address.
    """

    def answer(connection: ServerConnection, request: Request) -> Response:
        match request.path.partition("?")[0]:
            case "/livez":
                return _json(connection, 200, {"alive": True})
            case "/readyz":
                state = readiness()
                return _json(connection, 200 if state.ready else 503, state)
            case "/metrics":
                return _respond(connection, 200, CONTENT_TYPE, metrics())
            case _:
                return connection.respond(404, "there are /livez, /readyz and /metrics\n")

    host, port = address
    try:
        # The WebSocket server's HTTP side answers plain GETs; no upgrade is ever granted.
        server = await serve(None, host, port, process_request=answer)  # type: ignore[arg-type]
    except OSError as error:
        problem = (
            f"TURNBUS_ADMIN_ADDR: cannot listen on {join_host_port(*address)}: {error.strerror}"
        )
        advice = (
            "if another worker runs here, give this one another port, or an empty value for none, "
            "and a TURNBUS_WORKER_ID of its own"
        )
        raise SettingsError([f"{problem}; {advice}"]) from None
    try:
        yield next(iter(server.sockets)).getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def _json(connection: ServerConnection, status: int, content: object) -> Response:
    body = msgspec.json.encode(content) + b"\n"
    return _respond(connection, status, "application/json", body)


def _respond(connection: ServerConnection, status: int, content_type: str, body: bytes) -> Response:
    response = connection.respond(status, body.decode())
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = content_type
    response.headers["Cache-Control"] = "no-store"
    return response
