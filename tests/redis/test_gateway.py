"""The gateway in this process: its answers to pages, and what it counts."""

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext

import anyio
import pytest
from websockets.asyncio.client import connect as websocket

from tests.support.polling import PATIENCE_S, eventually
from tests.unit.ingest.wire import receive_all
from worker.bus.client.connection import connect
from worker.ingest import calls, server
from worker.ingest.http import Exchange
from worker.ingest.server import Gateway
from worker.ingest.settings import IngestSettings
from worker.local.redis import EmbeddedRedis
from worker.settings import Settings

PAGE = "https://app.example.com"


@asynccontextmanager
async def opened(
    redis_server: EmbeddedRedis | None = None, **settings: object
) -> AsyncIterator[Gateway]:
    """Run a gateway with a route that fails, on a Redis of its own unless one is given."""

    async def fail(exchange: Exchange) -> None:
        raise RuntimeError("bug")

    named = IngestSettings(ingest_listen="127.0.0.1:0", **settings)  # type: ignore[arg-type]
    async with (
        EmbeddedRedis.start() if redis_server is None else nullcontext(redis_server) as started,
        connect(started.url) as redis,
        Gateway.open(Settings(), named, redis, routes={"/fail": fail}) as gateway,
    ):
        yield gateway


async def get(gateway: Gateway, target: str, **headers: str) -> tuple[int, Mapping[str, str], str]:
    """Return the status, the headers and the body of an answer."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    async with await anyio.connect_tcp("127.0.0.1", gateway.port) as stream:
        await stream.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
        head, _, body = (await receive_all(stream)).decode().partition("\r\n\r\n")
    first, *named = head.split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in named), body


async def refused(gateway: Gateway) -> dict[str, str]:
    """Return the refused calls by status."""
    _, _, text = await get(gateway, "/metrics")
    start = "turnbus_ingest_refused_total{"
    lines = [line for line in text.splitlines() if line.startswith(start)]
    return {line.split('"')[1]: line.split()[-1] for line in lines}


async def test_refused_calls_are_counted_from_the_start() -> None:
    async with opened() as gateway:
        statuses = ("400", "401", "403", "409", "503")
        assert await refused(gateway) == dict.fromkeys(statuses, "0.0")
        assert (await get(gateway, "/raw?channels=9"))[0] == 400
        assert await refused(gateway) == dict.fromkeys(statuses, "0.0") | {"400": "1.0"}


async def test_internal_error_of_a_request_is_counted() -> None:
    async with opened() as gateway:
        assert (await get(gateway, "/fail"))[0] == 500
        _, _, text = await get(gateway, "/metrics")
        assert "turnbus_ingest_faults_total 1.0" in text


async def test_plain_request_opens_no_call() -> None:
    async with opened(ingest_grace_s=60) as gateway:
        status, headers, _ = await get(gateway, "/raw?session=call-1")
        assert (status, headers["Upgrade"]) == (426, "websocket")
        _, _, text = await get(gateway, "/metrics")
        assert "turnbus_ingest_calls_total{" not in text


async def test_plain_request_gets_the_reason_of_a_refusal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened() as gateway:
        await gateway.drain()
        status, _, body = await get(gateway, "/raw?session=call-1")
        assert (status, body) == (503, "no new calls are taken now\n")
    assert "/raw: a call was refused: no new calls are taken now" in caplog.messages


async def test_drain_during_an_outage_waits_for_no_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "LAST_EVENTS_S", math.inf)
    monkeypatch.setattr(calls, "FLUSH_TIMEOUT_S", 0.1)
    async with EmbeddedRedis.start() as redis, opened(redis, ingest_drain_s=0) as gateway:
        url = f"ws://127.0.0.1:{gateway.port}/raw?session=call-1&events=1"
        async with websocket(url, proxy=None) as socket:
            await socket.recv()
            await redis.kill()
            await socket.send(b"\0" * 6_400)
            await eventually(lambda: not gateway._health.up, "the outage")
            with anyio.fail_after(PATIENCE_S):
                await gateway.drain()


@pytest.mark.parametrize(
    ("listed", "origin", "allowed"),
    [
        (f"{PAGE}, https://b.example", PAGE, PAGE),
        ("*", PAGE, PAGE),
        (PAGE, "http://localhost", None),  # the gateway's own pages need none
        (PAGE, None, None),
        ("", "http://localhost", None),
    ],
)
async def test_listed_page_may_read_events(
    listed: str, origin: str | None, allowed: str | None
) -> None:
    async with opened(ingest_origins=listed) as gateway:
        sent = {} if origin is None else {"Origin": origin}
        _, headers, _ = await get(gateway, "/events?session=!", **sent)
        assert headers.get("Access-Control-Allow-Origin") == allowed
        assert headers.get("Vary") == ("Origin" if listed else None)


async def test_unlisted_page_may_not_read_events() -> None:
    async with opened(ingest_origins=PAGE) as gateway:
        status, headers, _ = await get(gateway, "/events?session=s", Origin="https://evil.example")
        assert status == 403
        assert "Access-Control-Allow-Origin" not in headers
