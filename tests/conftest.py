"""Fixtures for all tests."""

import faulthandler
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from uuid import uuid4

import pytest
import redis as blocking
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from tests.support.acl import GuardedRedis, as_user, grant, refusals
from tests.support.embedded_cluster import SERVICE, EmbeddedCluster, EmbeddedSentinel
from tests.support.harness import KEY, Harness, Place
from tests.support.holes import give_addresses
from worker.bus.client.connection import connect
from worker.local import redis as embedded
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.local.redis import EmbeddedRedis

# No test asserts on time: a stalled machine must not fail an example or its
# generation.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

ROOT = Path(__file__).parents[1]

LONG_RUN_S = 1_200
"""Timeout of a slow test in seconds. `faulthandler_timeout` is that of the others."""

PROCESSES = 16
"""Maximum number of test processes with separate port ranges."""

if process := os.environ.get("PYTEST_XDIST_WORKER"):
    # A stopped server keeps its port, so test processes must not share ports.
    embedded._PORTS = embedded._PORTS[int(process.removeprefix("gw")) % PROCESSES :: PROCESSES]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores SIGINT in background jobs, and the processes that tests interrupt inherit
    # this.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # Without bytecode, each process started from here compiles every module again.
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / ".pytest_cache" / "bytecode"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run repeat one seed of the simulated fleet."""
    parser.addoption(
        "--simulation-seed", type=int, help="run only this seed of the simulated fleet"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give a slow test more time before its process is ended."""
    if item.get_closest_marker("slow"):
        faulthandler.dump_traceback_later(LONG_RUN_S, exit=True)


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, which redis-py and websockets require."""
    return "asyncio"


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bypass this machine's proxies in all connections of a test."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[GuardedRedis]:
    """One server per test process. Tests that kill or fill a server start their own.

    It has the users of `deploy/redis/users.acl`. Each test grants them rights on its own prefix.
    """
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(GuardedRedis.start()) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[EmbeddedCluster]:
    """One cluster of three masters per test process. No test breaks it.

    Its node timeout is long, so that a stalled node is not marked as failed with all its slots.
    """
    start = EmbeddedCluster.start(config={"cluster-node-timeout": "60000"})
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(start) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="session")
def redis_sentinel() -> Iterator[EmbeddedSentinel]:
    """One master with its sentinel per test process. No test breaks it.

    The sentinel's timeout is long, so that a stalled master is not marked as down.
    """
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(EmbeddedSentinel.start()) as servers,
    ):
        with blocking.Redis.from_url(servers.sentinel.url) as sentinel:
            setting = ("SENTINEL", "SET", SERVICE, "down-after-milliseconds", 3_600_000)
            sentinel.execute_command(*setting)
        yield servers


@pytest.fixture(scope="session")
def redis_7_binary() -> Path:
    """Path of Debian's Redis, the oldest supported server."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on PATH")
    info = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True).stdout
    if "v=7.0." not in info:
        pytest.skip(f"{binary} is no Redis 7.0: {info.strip()}")
    return Path(binary)


@pytest.fixture(scope="session")
def redis_7(redis_7_binary: Path) -> Iterator[EmbeddedRedis]:
    """One Redis 7.0 per test process."""
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(EmbeddedRedis.start(binary=redis_7_binary)) as server,
    ):
        yield server


@pytest.fixture
def resolving(monkeypatch: pytest.MonkeyPatch) -> dict[str, Sequence[str]]:
    """Addresses by host name for connects of this process. Tests add to it."""
    return give_addresses(monkeypatch)


@pytest.fixture
def bus_kind() -> str:
    """Kind of Redis below the bus. `ON_EACH_BUS` parametrizes a test with each kind."""
    return "plain"


@pytest.fixture
def bus_place(bus_kind: str, request: pytest.FixtureRequest) -> Place:
    """Addresses of the bus."""
    match bus_kind:
        case "cluster":
            cluster: EmbeddedCluster = request.getfixturevalue("redis_cluster")
            return Place(cluster.url, tuple(master.url for master in cluster.masters))
        case "sentinel":
            servers: EmbeddedSentinel = request.getfixturevalue("redis_sentinel")
            return Place(servers.url, (servers.master.url,))
        case _:
            name = "redis_7" if bus_kind == "redis 7.0" else "redis_server"
            server: EmbeddedRedis = request.getfixturevalue(name)
            return Place(server.url, (server.url,))


@pytest.fixture
async def redis(bus_place: Place) -> AsyncIterator[Redis]:
    """Connect as the admin, to inspect, break and clean up."""
    async with connect(as_user(bus_place.url, "admin")) as client:
        yield client


@pytest.fixture
async def as_worker(bus_place: Place) -> AsyncIterator[Redis]:
    """Connect as the worker, to run a part of it."""
    async with connect(as_user(bus_place.url, "worker")) as client:
        yield client


@pytest.fixture
async def as_producer(bus_place: Place) -> AsyncIterator[Redis]:
    """Connect as a producer."""
    async with connect(as_user(bus_place.url, "producer")) as client:
        yield client


@pytest.fixture
async def as_gateway(bus_place: Place) -> AsyncIterator[Redis]:
    """Connect as a gateway, to run a part of it."""
    async with connect(as_user(bus_place.url, "ingest")) as client:
        yield client


@pytest.fixture
def expected_leftovers() -> list[str]:
    """Patterns (`fnmatch`, without prefix) of keys that a test may leave. Tests add to it.

    A gateway that is killed just after the end of a call leaves its producer key, which expires.
    """
    return ["*:producer:*"]


@pytest.fixture
def bus_prefix(bus_place: Place, expected_leftovers: list[str]) -> Iterator[str]:
    """Key prefix of one test, the only one on which its users have rights.

    The test fails if unexpected keys remain under the prefix. It also fails if Redis denied a user
    anything: the ACL rules must permit all that a worker, a producer or a consumer does.
    """
    prefix = f"test-{uuid4().hex[:12]}"
    grant(bus_place.masters, prefix)
    yield prefix
    left = []
    refused = []
    for url in bus_place.masters:
        with blocking.Redis.from_url(url) as client:
            refused += refusals(client)
            for key in client.scan_iter(f"{prefix}:*", count=1_000):
                left.append(key.decode())
                client.delete(key)
    names = sorted(key.removeprefix(f"{prefix}:") for key in left)
    leaked = [
        name
        for name in names
        if not any(fnmatchcase(name, pattern) for pattern in expected_leftovers)
    ]
    assert not leaked, f"keys left behind: {', '.join(leaked)}"
    assert not refused, "; ".join(refused)


@pytest.fixture
async def stt() -> AsyncIterator[TurnsServer]:
    """Run the STT server with the script engine and a latency of 150 ms."""
    settings = ServerSettings(port=0, api_keys=frozenset({KEY}))
    async with TurnsServer.serve(settings, ScriptEngine(ScriptOptions(latency_ms=150))) as server:
        yield server


@pytest.fixture
async def harness(
    bus_place: Place, bus_prefix: str, stt: TurnsServer, expected_leftovers: list[str]
) -> AsyncIterator[Harness]:
    """Open the harness: a bus and a provider. No worker runs yet."""
    expected_leftovers += ["sessions", "lanes", "dead", "{0}:turns", "{0}:state:*", "{0}:audio:*"]
    async with Harness.open(bus_place.url, bus_prefix, stt.url) as harness:
        yield harness
