"""The HTTP port with unmodified clients."""

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError
from websockets.typing import Subprotocol

from worker.errors import SettingsError
from worker.ingest.http import Exchange, Limits, serve_http

pytestmark = pytest.mark.anyio


async def _echo(exchange: Exchange) -> None:
    socket = await exchange.accept("media")
    while True:
        await socket.send(await socket.receive())


async def test_websocket_messages_arrive_whole() -> None:
    async with serve_http("127.0.0.1", 0, _echo) as port:
        url, offered = f"ws://127.0.0.1:{port}/raw", [Subprotocol("media")]
        async with connect(url, subprotocols=offered) as client:
            assert client.subprotocol == "media"
            await client.send(["ab", "", "c"])
            assert await client.recv() == "abc"
            await client.send(b"\x00\x01")
            assert await client.recv() == b"\x00\x01"


async def test_oversized_message_is_closed_with_1009() -> None:
    limits = Limits(max_message_bytes=10)
    async with serve_http("127.0.0.1", 0, _echo, limits) as port:
        url = f"ws://127.0.0.1:{port}/"
        async with connect(url) as client:
            await client.send(b"x" * 11)
            with pytest.raises(ConnectionClosedError) as closed:
                await client.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_taken_port_is_a_clear_error() -> None:
    async with serve_http("127.0.0.1", 0, _echo) as port:
        with pytest.raises(SettingsError, match="cannot listen"):
            async with serve_http("127.0.0.1", port, _echo):
                pass
