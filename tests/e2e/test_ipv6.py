"""IPv6 everywhere: Redis, cluster and sentinel nodes, the provider, and health checks."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest

from tests.support.acl import grant
from tests.support.embedded_cluster import SERVICE, EmbeddedCluster, client, execute
from tests.support.harness import KEY, PCM16, Harness, Place, check_order, words
from worker.bus.client.cluster import ClusterClient
from worker.bus.client.connection import connect
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.local.redis import EmbeddedRedis, free_port

Kind: TypeAlias = Callable[[], AbstractAsyncContextManager[Place]]

BOTH = {"bind": "127.0.0.1 ::1"}
"""Addresses to bind. The setup code of the servers connects over IPv4."""


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 loopback here")


@asynccontextmanager
async def plain() -> AsyncIterator[Place]:
    async with EmbeddedRedis.start(config=BOTH) as server:
        yield Place(f"redis://[::1]:{server.port}/0", (server.url,))


@asynccontextmanager
async def cluster() -> AsyncIterator[Place]:
    """A cluster whose nodes announce their IPv6 addresses."""
    async with EmbeddedCluster.start(config=BOTH) as servers:
        for node in servers.masters:
            async with client(node) as redis:
                await redis.config_set("cluster-announce-ip", "::1")
        addresses = ",".join(f"[::1]:{node.port}" for node in servers.masters)
        url = f"redis+cluster://{addresses}"
        with anyio.fail_after(30):
            while await _hosts(url) != {"::1"}:
                await anyio.sleep(0.05)
        yield Place(url, tuple(node.url for node in servers.masters))


async def _hosts(url: str) -> set[str]:
    async with connect(url) as redis:
        assert isinstance(redis, ClusterClient)
        return {node.connection_pool.connection_kwargs["host"] for node in await redis.masters()}


@asynccontextmanager
async def sentinel() -> AsyncIterator[Place]:
    async with (
        EmbeddedRedis.start(config=BOTH) as server,
        EmbeddedRedis.start_sentinel(config=BOTH) as watcher,
        client(watcher) as redis,
    ):
        await execute(redis, "SENTINEL", "MONITOR", SERVICE, "::1", server.port, 1)
        url = f"redis+sentinel://[::1]:1,[::1]:{watcher.port}/{SERVICE}"
        yield Place(url, (server.url,))


@pytest.mark.parametrize("kind", [plain, cluster, sentinel])
async def test_session_over_ipv6(kind: Kind, tmp_path: Path) -> None:
    settings = ServerSettings(host="::1", port=0, api_keys=frozenset({KEY}))
    engine = ScriptEngine(ScriptOptions(latency_ms=150))
    port = free_port()
    async with kind() as place, TurnsServer.serve(settings, engine) as stt:
        assert stt.url.startswith("ws://[::1]:")
        grant(place.masters, "stt")
        async with (
            Harness.open(place.url, "stt", stt.url) as harness,
            harness.worker_process("one", tmp_path / "one", admin_addr=f"[::]:{port}"),
        ):
            await harness.announce("call-1", lane="a")
            await harness.play("call-1", synthesize_words([1, 2, 3], PCM16), pause_s=0)
            events = (await harness.until_ended("call-1"))["call-1"]
            assert await anyio.to_thread.run_sync(_is_live, "::1", port)
        check_order(events)
        assert words(events) == [1, 2, 3]


def _is_live(host: str, port: int) -> bool:
    health = HTTPConnection(host, port, timeout=10)
    try:
        health.request("GET", "/livez")
        return health.getresponse().status == 200
    finally:
        health.close()
