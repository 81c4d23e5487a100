"""A bare client of the turns protocol: literal URLs, headers and JSON, no code of the worker."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.polling import PATIENCE_S
from worker.local.emulator.engines.base import AudioFormat, Engine
from worker.local.emulator.engines.script import ScriptEngine
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings

PHONE = AudioFormat("pcm_s16le", 8000)
HEADERS = {"X-API-Key": "sk_car_test", "Cartesia-Version": "2026-03-01"}
GOOD = {"model": "ink-2", "encoding": PHONE.encoding, "sample_rate": "8000"}

Event = dict[str, Any]


@asynccontextmanager
async def serving(
    settings: ServerSettings = ServerSettings(port=0),  # noqa: B008 - frozen
    engine: Engine | None = None,
) -> AsyncIterator[TurnsServer]:
    """A server on a free port, with the script engine by default."""
    async with TurnsServer.serve(settings, engine or ScriptEngine()) as server:
        yield server


def dial(
    server: TurnsServer,
    query: Mapping[str, str] | Sequence[tuple[str, str]] = GOOD,
    headers: Mapping[str, str] = HEADERS,
    path: str = "/stt/turns/websocket",
    open_timeout: float = 10,
) -> connect:
    """A connection to open with `async with`; it offers compression, as the SDK does."""
    # The environment's proxy is not used between two ends on one machine.
    url = f"ws://127.0.0.1:{server.port}{path}?{urlencode(query)}"
    return connect(url, additional_headers=headers, proxy=None, open_timeout=open_timeout)


def upgrade_request() -> bytes:
    """Return the bytes of a valid upgrade request, for tests that read the raw reply."""
    lines = [
        f"GET /stt/turns/websocket?{urlencode(GOOD)} HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *(f"{name}: {value}" for name, value in HEADERS.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def next_event(ws: ClientConnection) -> Event:
    event: Event = json.loads(await ws.recv())
    return event


def kinds(events: list[Event]) -> list[str]:
    return [event["type"] for event in events]


async def rest_of(ws: ClientConnection) -> tuple[list[Event], int, str]:
    """Return the remaining events, and the code and reason of the server's close."""
    events = []
    while True:
        try:
            events.append(await next_event(ws))
        except ConnectionClosed:
            assert ws.close_code is not None
            return events, ws.close_code, ws.close_reason or ""


async def closed(ws: ClientConnection) -> tuple[list[Event], int, str]:
    """Send `close`, then return the same."""
    await ws.send('{"type":"close"}')
    return await rest_of(ws)


async def until_open(server: TurnsServer, count: int) -> None:
    """Wait until so many sockets are open; the server needs a moment to notice a closed one."""
    with anyio.fail_after(PATIENCE_S):
        while server.open_connections != count:
            await anyio.sleep(0.01)
