"""The proxy refuses, stalls and resumes connections on one port."""

import contextlib
from collections.abc import AsyncIterator

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from tests.support.polling import PATIENCE_S, eventually, no_longer
from worker.bench.proxy import Proxy


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """Run a proxy to a server that echoes."""

    async def echo(client: SocketStream) -> None:
        with contextlib.suppress(anyio.BrokenResourceError):  # the proxy resets it
            async with client:
                async for data in client:
                    await client.send(data)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo)
        async with Proxy.open(lambda: port) as proxy:
            yield proxy
        tasks.cancel_scope.cancel()


async def _answer(client: SocketStream) -> bytes:
    await client.send(b"data")
    with anyio.fail_after(PATIENCE_S):
        return await client.receive()


async def _refuses(proxy: Proxy) -> bool:
    try:
        client = await anyio.connect_tcp("127.0.0.1", proxy.port)
    except OSError as error:
        return isinstance(error.__cause__, ConnectionRefusedError)
    await client.aclose()
    return False


async def test_closed_proxy_refuses_connects_and_opens_again(proxy: Proxy) -> None:
    for _ in range(2):
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
            assert await _answer(client) == b"data"
            with proxy.closed():
                await eventually(lambda: _refuses(proxy), "it is closed")
                assert await _answer(client) == b"data"  # an open connection stays
        await no_longer(lambda: _refuses(proxy), "it is closed")


async def test_stalling_proxy_accepts_connects_and_answers_nothing(proxy: Proxy) -> None:
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as before:
        assert await _answer(before) == b"data"
        with proxy.stalling():
            async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
                await before.send(b"data")
                await client.send(b"data")
                for stalled in (before, client):
                    with anyio.move_on_after(0.1):
                        pytest.fail(f"it answered {await stalled.receive()!r}")
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
        assert await _answer(client) == b"data"
