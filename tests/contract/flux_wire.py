"""A bare client of the Flux protocol: literal URLs, headers and JSON, no code of the worker."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from urllib.parse import urlencode

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.contract.wire import Event, rest_of
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import FluxSettings, ServerSettings

FLUX = ServerSettings(port=0, provider="flux")
GOOD = {"model": "flux-general-en", "encoding": "linear16", "sample_rate": "8000"}
EAGER = {**GOOD, "eager_eot_threshold": "0.4"}
HEADERS = {"Authorization": "Token dg_test"}
CLOSE = '{"type":"CloseStream"}'
FORCE = '{"type":"ForceEndTurn"}'


def flux(**choices: object) -> ServerSettings:
    """Return the settings of a server with choices of the protocol."""
    return ServerSettings(port=0, provider="flux", flux=FluxSettings(**choices))  # type: ignore[arg-type]


def dial(
    server: TurnsServer,
    query: Mapping[str, str] = GOOD,
    headers: Mapping[str, str] = HEADERS,
    path: str = "/v2/listen",
    subprotocols: Sequence[Subprotocol] | None = None,
) -> connect:
    """A connection to open with `async with`."""
    url = f"ws://127.0.0.1:{server.port}{path}?{urlencode(query)}"
    return connect(url, additional_headers=headers, proxy=None, subprotocols=subprotocols)


async def play(
    server: TurnsServer, *parts: bytes | str, query: Mapping[str, str] = GOOD
) -> tuple[list[Event], int]:
    """Send all parts; return the messages of the server and the code of its close."""
    async with dial(server, query) as ws, anyio.create_task_group() as tasks:
        tasks.start_soon(_send, ws, parts)
        events, code, _ = await rest_of(ws)
        tasks.cancel_scope.cancel()
    return events, code


async def _send(ws: ClientConnection, parts: tuple[bytes | str, ...]) -> None:
    with suppress(ConnectionClosed):  # a fault may end the connection before
        for part in parts:
            await ws.send(part)


def brief(events: list[Event]) -> list[str]:
    """Summarise messages: the event and its text, or the code, or the type."""
    return [
        f"{event['event']} {event['transcript']}".strip()
        if event["type"] == "TurnInfo"
        else str(event.get("code", event["type"]))
        for event in events
    ]
