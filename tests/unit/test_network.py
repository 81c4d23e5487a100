"""Connecting to hosts with several addresses, some unreachable; real sockets on loopback."""

import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
from redis import exceptions

from schemas import Encoding
from tests.support.acl import grant
from tests.support.certificates import Authority, add_tls, behind_tls
from tests.support.embedded_cluster import SERVICE, EmbeddedCluster, client, execute
from tests.support.harness import KEY, PCM16, Harness, Place, check_order, words
from tests.support.holes import HOLES, HOST, REFUSING, black_hole, black_holes
from worker.bus.client.cluster import ClusterClient
from worker.bus.client.connection import RedisHealth, connect
from worker.bus.presence import stay_subscribed
from worker.errors import SttTransientError
from worker.local.emulator.engines.script import ScriptEngine, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.local.redis import EmbeddedRedis
from worker.network import connect_tcp
from worker.stt import websocket as stt_socket
from worker.stt.cartesia import CARTESIA
from worker.stt.provider import Endpoint, StreamSettings
from worker.urls import provider_address

Names: TypeAlias = dict[str, Sequence[str]]
GOOD = "127.0.0.1"
ON_EACH_LOOP = pytest.mark.parametrize("use_uvloop", [False, True])
SETTINGS = StreamSettings(model="ink-2", encoding=Encoding.PCM_S16LE, sample_rate=16_000)


@pytest.fixture
def port() -> Iterator[int]:
    """Listen, and let the kernel accept connections."""
    with socket.create_server((GOOD, 0)) as listener:
        yield listener.getsockname()[1]


@ON_EACH_LOOP
@pytest.mark.parametrize(
    "addresses",
    [
        (GOOD,),
        (HOLES[0], GOOD),
        (GOOD, HOLES[0]),
        (REFUSING, GOOD),
        (HOLES[0], REFUSING, GOOD),
        (REFUSING, HOLES[0], HOLES[1], GOOD),
        (*HOLES, GOOD),
    ],
)
def test_connect_reaches_address_that_answers(
    resolving: Names, port: int, use_uvloop: bool, addresses: tuple[str, ...]
) -> None:
    resolving[HOST] = addresses

    async def peer() -> Any:
        with await connect_tcp(HOST, port, 30) as connected:
            return connected.getpeername()

    with ExitStack() as stack:
        for address in set(addresses) & set(HOLES):
            stack.enter_context(black_hole(port, address))
        assert anyio.run(peer, backend_options={"use_uvloop": use_uvloop}) == (GOOD, port)


async def test_connect_skips_unreachable_ipv6_address(resolving: Names, port: int) -> None:
    resolving[HOST] = ("::1", GOOD)
    with ExitStack() as stack:
        try:
            stack.enter_context(black_hole(port, "::1"))
        except OSError:
            pytest.skip("no IPv6 loopback here")
        with await connect_tcp(HOST, port, 30) as connected:
            assert connected.getpeername() == (GOOD, port)


@ON_EACH_LOOP
def test_connect_error_names_host_and_addresses(
    resolving: Names, port: int, use_uvloop: bool
) -> None:
    resolving[HOST] = HOLES[:2]
    connecting = partial(connect_tcp, HOST, port, 0.6)
    with ExitStack() as stack:
        for address in HOLES[:2]:
            stack.enter_context(black_hole(port, address))
        late = stack.enter_context(pytest.raises(TimeoutError))
        anyio.run(connecting, backend_options={"use_uvloop": use_uvloop})
    assert str(late.value) == f"no answer from {HOST}:{port} (127.0.0.2, 127.0.0.3) within 0.6 s"


async def test_connect_error_names_address_once(port: int) -> None:
    with black_hole(port), pytest.raises(TimeoutError) as late:
        await connect_tcp(HOLES[0], port, 0.1)
    assert str(late.value) == f"no answer from 127.0.0.2:{port} within 0.1 s"


async def test_connect_error_names_host_without_address() -> None:
    with pytest.raises(socket.gaierror, match=r"no-such-host\.invalid: "):
        await connect_tcp("no-such-host.invalid", 1, 30)


async def test_connect_closes_losing_sockets(resolving: Names, port: int) -> None:
    resolving[HOST] = (*HOLES, GOOD)
    made: list[socket.socket] = []

    def make(address: Any) -> socket.socket:
        made.append(socket.socket(*address[:3]))
        return made[-1]

    with ExitStack() as stack:
        for address in HOLES:
            stack.enter_context(black_hole(port, address))
        winner = await connect_tcp(HOST, port, 30, make)
    assert [each.fileno() == -1 for each in made] == [True, True, True, False]
    assert made[-1] is winner
    winner.close()


# -- Redis


@asynccontextmanager
async def plain(_: Authority | None) -> AsyncIterator[Place]:
    async with EmbeddedRedis.start() as server, black_holes(server.port):
        yield Place(f"redis://{HOST}:{server.port}/0", (server.url,))


@asynccontextmanager
async def secure(authority: Authority) -> AsyncIterator[Place]:
    binary = shutil.which("redis-server")  # the embedded Redis has no TLS
    if binary is None:
        pytest.skip("no redis-server on PATH")
    async with EmbeddedRedis.start(binary=Path(binary)) as server:
        port = await add_tls(server, authority, authority.issue(HOST))
        async with black_holes(port):
            url = f"rediss://{HOST}:{port}/0?ssl_ca_certs={authority.file}"
            yield Place(url, (server.url,))


@asynccontextmanager
async def cluster(_: Authority) -> AsyncIterator[Place]:
    """A cluster whose nodes announce their name, not their address."""
    async with EmbeddedCluster.start() as servers:
        for node in servers.masters:
            async with client(node) as redis:
                await execute(
                    *(redis, "CONFIG", "SET", "cluster-announce-hostname", HOST),
                    *("cluster-preferred-endpoint-type", "hostname"),
                )
        url = f"redis+cluster://{HOST}:{servers.masters[0].port}"
        ports = [node.port for node in servers.masters]
        with anyio.fail_after(30):
            while await _nodes(url) != {(HOST, each) for each in ports}:
                await anyio.sleep(0.05)
        async with black_holes(*ports):
            yield Place(url, tuple(node.url for node in servers.masters))


async def _nodes(url: str) -> set[tuple[str, int]]:
    async with connect(url) as redis:
        assert isinstance(redis, ClusterClient)
        places = [node.connection_pool.connection_kwargs for node in await redis.masters()]
    return {(place["host"], place["port"]) for place in places}


@asynccontextmanager
async def sentinel(_: Authority) -> AsyncIterator[Place]:
    async with EmbeddedRedis.start() as server, EmbeddedRedis.start_sentinel() as watcher:
        async with client(watcher) as redis:
            await execute(redis, "SENTINEL", "MONITOR", SERVICE, GOOD, server.port, 1)
        async with black_holes(server.port, watcher.port):
            url = f"redis+sentinel://{HOST}:{watcher.port}/{SERVICE}"
            yield Place(url, (server.url,))


Kind: TypeAlias = Callable[[Authority], AbstractAsyncContextManager[Place]]


@pytest.mark.parametrize("kind", [plain, secure, cluster, sentinel])
async def test_session_runs_despite_unreachable_address(
    resolving: Names, stt: TurnsServer, tmp_path: Path, kind: Kind
) -> None:
    """All connections together: Redis of each kind, subscriptions, the provider."""
    resolving[HOST] = (HOLES[0], GOOD)
    resolving[GOOD] = (HOLES[0], GOOD)  # the master address that a sentinel returns
    stt_url = stt.url.replace(GOOD, HOST)
    async with kind(Authority(tmp_path)) as place, black_holes(stt.port):
        grant(place.masters, "stt")
        async with Harness.open(place.url, "stt", stt_url) as harness, harness.worker():
            await harness.announce("call-1")
            await harness.play("call-1", synthesize_words([1, 2, 3], PCM16))
            events = (await harness.until_ended("call-1"))["call-1"]
        check_order(events)
        assert words(events) == [1, 2, 3]


@ON_EACH_LOOP
@pytest.mark.parametrize("kind", [plain, secure])
def test_redis_subscribes_on_each_event_loop(
    resolving: Names, tmp_path: Path, kind: Kind, use_uvloop: bool
) -> None:
    resolving[HOST] = (HOLES[0], GOOD)

    async def subscribe() -> None:
        async with (
            kind(Authority(tmp_path)) as place,
            connect(place.url) as redis,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(stay_subscribed, redis, "alive")
            while not dict(await redis.pubsub_numsub("alive"))[b"alive"]:
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()

    anyio.run(subscribe, backend_options={"use_uvloop": use_uvloop})


async def test_redis_keeps_socket_options(resolving: Names) -> None:
    resolving[HOST] = (HOLES[0], GOOD)
    async with (
        plain(None) as place,
        connect(place.url) as redis,
        redis.client() as one,
    ):
        await one.ping()
        assert one.connection is not None
        assert one.connection._writer is not None
        sock = one.connection._writer.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_unreachable_redis_is_named(
    resolving: Names, monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    monkeypatch.setattr("worker.bus.client.connection._SOCKET_TIMEOUT_S", 0.3)
    resolving[HOST] = HOLES[:1]
    async with black_holes(port), connect(f"redis://{HOST}:{port}/0") as redis:
        with pytest.raises(exceptions.ConnectionError) as late:
            await redis.ping()
    assert str(late.value) == f"no answer from {HOST}:{port} (127.0.0.2) within 0.3 s"


async def test_redis_is_reached_once_its_name_resolves(resolving: Names) -> None:
    resolving[HOST] = ()
    health = RedisHealth()
    async with (
        EmbeddedRedis.start() as server,
        connect(f"redis://{HOST}:{server.port}/0") as redis,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(health.retry, redis.ping)
        while health.up:
            await anyio.sleep(0.01)
        assert f"{HOST}: Name or service not known" in str(health.outage)
        resolving[HOST] = (GOOD,)
        while not health.up:
            await anyio.sleep(0.01)


# -- the provider


@ON_EACH_LOOP
def test_provider_is_reached_with_tls_on_each_event_loop(
    resolving: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_uvloop: bool
) -> None:
    resolving[HOST] = (HOLES[0], REFUSING, GOOD)
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    stt_socket._tls.cache_clear()

    async def converse() -> None:
        settings = ServerSettings(port=0, api_keys=frozenset({KEY}))
        async with (
            TurnsServer.serve(settings, ScriptEngine()) as stt,
            behind_tls(stt.url, authority.issue(HOST)) as url,
        ):
            url = url.replace("localhost", HOST)
            async with black_holes(provider_address(url)[1]):
                service = Endpoint(url, "2026-03-01", KEY)
                async with await CARTESIA.open(service, SETTINGS) as stream:
                    assert stream.request_id

    try:
        anyio.run(converse, backend_options={"use_uvloop": use_uvloop})
    finally:
        stt_socket._tls.cache_clear()


async def test_unreachable_provider_is_named(
    resolving: Names, monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    monkeypatch.setattr(stt_socket, "CONNECT_TIMEOUT_S", 0.3)
    resolving[HOST] = HOLES[:1]
    service = Endpoint(f"ws://{HOST}:{port}/stt", "2026-03-01", KEY)
    with black_hole(port), pytest.raises(SttTransientError) as late:
        await CARTESIA.open(service, SETTINGS)
    assert str(late.value) == f"no answer from {HOST}:{port} (127.0.0.2) within 0.3 s"


_RESETS = """
import asyncio, socket, struct
import uvloop
from worker.stt.websocket import open_socket

async def main():
    server = socket.create_server(("127.0.0.1", 0), backlog=1_000)
    server.setblocking(False)
    loop = asyncio.get_running_loop()

    async def reset():
        while True:
            accepted, _ = await loop.sock_accept(server)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()

    async def connect(errors):
        try:
            await open_socket(f"ws://127.0.0.1:{server.getsockname()[1]}/", {})
        except OSError as error:
            errors.add(str(error))

    resetting = asyncio.ensure_future(reset())
    errors = set()
    for _ in range(10):
        await asyncio.gather(*(connect(errors) for _ in range(200)))
    resetting.cancel()
    print(errors)

uvloop.run(main())
"""


def test_reset_connection_closes_no_other() -> None:
    """libuv aborts a process that closes the descriptor of another connection."""
    pytest.importorskip("uvloop")
    done = subprocess.run(
        [sys.executable, "-c", _RESETS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Bad file descriptor" not in done.stdout
