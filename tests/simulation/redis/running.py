"""Runs the model on a loopback port, for clients on a real event loop."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.simulation.redis.server import RedisServer
from tests.support.harness import Harness
from worker.bus.client.connection import connect


@asynccontextmanager
async def listening(server: RedisServer) -> AsyncIterator[str]:
    """Serve a server's connections until the context ends; yield its URL."""
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        listener.close()
        server.disconnect_all()
        await listener.wait_closed()


def new_server() -> RedisServer:
    """Return a server with this machine's clock."""
    return RedisServer(time.time, random.Random(1))


@asynccontextmanager
async def harness_on(url: str, stt_url: str) -> AsyncIterator[Harness]:
    """Open a harness on a server without users."""
    async with connect(url) as admin, connect(url) as producer, connect(url) as consumer:
        yield Harness(url, "stt", stt_url, admin=admin, producer=producer, consumer=consumer)
