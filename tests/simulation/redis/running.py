"""Runs the model on a loopback port, for clients on a real event loop."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from tests.simulation.redis.cluster import (
    CRON_INTERVAL_S,
    Cluster,
    ClusterNode,
    equal_shares,
)
from tests.simulation.redis.server import RedisServer
from tests.support.harness import Harness
from worker.bus.client.connection import connect


@asynccontextmanager
async def listening(server: RedisServer) -> AsyncIterator[str]:
    """Serve a server's connections until the context ends; yield its URL."""
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    if isinstance(server, ClusterNode):
        server.myself.host, server.myself.port = host, port
    try:
        yield f"redis://{host}:{port}/0"
    finally:
        listener.close()
        server.disconnect_all()
        await listener.wait_closed()


@asynccontextmanager
async def cluster_listening(cluster: Cluster) -> AsyncIterator[str]:
    """Serve the connections of all nodes until the context ends; yield the cluster's URL."""

    async def run_crons() -> None:
        while True:
            for node in cluster.nodes:
                node.cron()
            await anyio.sleep(CRON_INTERVAL_S)

    async with AsyncExitStack() as stack:
        for node in cluster.nodes:
            await stack.enter_async_context(listening(node))
        crons = await stack.enter_async_context(anyio.create_task_group())
        crons.start_soon(run_crons)
        yield f"redis+cluster://{','.join(node.myself.address for node in cluster.nodes)}"
        crons.cancel_scope.cancel()


def new_cluster() -> Cluster:
    """Return a cluster of three nodes with this machine's clock."""
    return Cluster(equal_shares(3), [time.time] * 3, random.Random(1))


def new_server() -> RedisServer:
    """Return a server with this machine's clock."""
    return RedisServer(time.time, random.Random(1))


@asynccontextmanager
async def harness_on(url: str, stt_url: str) -> AsyncIterator[Harness]:
    """Open a harness on a server without users."""
    async with connect(url) as admin, connect(url) as producer, connect(url) as consumer:
        yield Harness(url, "stt", stt_url, admin=admin, producer=producer, consumer=consumer)
