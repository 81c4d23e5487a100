"""Fixtures every test may use."""

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
from tests.support.harness import KEY, Harness, Place
from tests.support.holes import give_addresses
from worker.bus.client.connection import connect
from worker.local import redis as embedded
from worker.local.cluster import SERVICE, EmbeddedCluster, EmbeddedSentinel
from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.local.redis import EmbeddedRedis

# Nothing is asserted on time: a machine that stands still for a moment is no fault of an example,
# nor of what makes them.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

ROOT = Path(__file__).parents[1]

LONG_RUN_S = 1_200
"""Limit of a slow test; that of the others is `faulthandler_timeout`."""

PROCESSES = 16
"""Test processes that get ports of their own."""

if process := os.environ.get("PYTEST_XDIST_WORKER"):
    # A server that a test takes down keeps its port: no test process picks one of another.
    embedded._PORTS = embedded._PORTS[int(process.removeprefix("gw")) % PROCESSES :: PROCESSES]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so, and the processes that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # The processes that are started from here would compile every module anew.
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / ".pytest_cache" / "bytecode"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give a slow test more time before its process is ended."""
    if item.get_closest_marker("slow"):
        faulthandler.dump_traceback_later(LONG_RUN_S, exit=True)


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio: redis-py and websockets need it."""
    return "asyncio"


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no proxy of this machine between a test and what it connects to."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[GuardedRedis]:
    """One server for the test process; tests that kill or fill theirs start their own.

    It has the users of `deploy/redis/users.acl`: each test gives them rights on its own prefix.
    """
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(GuardedRedis.start()) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[EmbeddedCluster]:
    """One cluster of three masters for the test process; nobody breaks it.

    Nor does it take a node for lost that stands still for a moment, and all its slots with it.
    """
    start = EmbeddedCluster.start(config={"cluster-node-timeout": "60000"})
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(start) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="session")
def redis_sentinel() -> Iterator[EmbeddedSentinel]:
    """One master with its sentinel for the test process; nobody breaks it.

    Nor does the sentinel take the master for lost that stands still for a moment.
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
    """Debian's Redis, the oldest server that is supported."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on PATH")
    said = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True).stdout
    if "v=7.0." not in said:
        pytest.skip(f"{binary} is no Redis 7.0: {said.strip()}")
    return Path(binary)


@pytest.fixture(scope="session")
def redis_7(redis_7_binary: Path) -> Iterator[EmbeddedRedis]:
    """One Redis 7.0 for the test process."""
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(EmbeddedRedis.start(binary=redis_7_binary)) as server,
    ):
        yield server


@pytest.fixture
def resolving(monkeypatch: pytest.MonkeyPatch) -> dict[str, Sequence[str]]:
    """Addresses of names, for connects of this process: add to them."""
    return give_addresses(monkeypatch)


@pytest.fixture
def bus_kind() -> str:
    """Kind of Redis below the bus: tests that run on each are parametrized with `ON_EACH_BUS`."""
    return "plain"


@pytest.fixture
def bus_place(bus_kind: str, request: pytest.FixtureRequest) -> Place:
    """Where the bus is."""
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
    """Connect as the admin: what a test looks at, breaks, or cleans up."""
    async with connect(as_user(bus_place.url, "admin")) as client:
        yield client


@pytest.fixture
async def as_worker(bus_place: Place) -> AsyncIterator[Redis]:
    """Connect as the worker: what runs a part of it."""
    async with connect(as_user(bus_place.url, "worker")) as client:
        yield client


@pytest.fixture
async def as_producer(bus_place: Place) -> AsyncIterator[Redis]:
    """Connect as a producer."""
    async with connect(as_user(bus_place.url, "producer")) as client:
        yield client


@pytest.fixture
def expected_leftovers() -> list[str]:
    """Patterns (`fnmatch`, without prefix) of the keys a test means to leave: add to it."""
    return []


@pytest.fixture
def bus_prefix(bus_place: Place, expected_leftovers: list[str]) -> Iterator[str]:
    """Key prefix of one test, the only one on which its users have rights.

    Keys left under it that were not expected fail the test, and so does whatever was refused to a
    user: nothing a worker, a producer or a consumer tried may be missing from its rules.
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
    """Run the STT server with the script engine, 150 ms behind its audio."""
    settings = ServerSettings(port=0, api_keys=frozenset({KEY}))
    async with TurnsServer.serve(settings, ScriptEngine(ScriptOptions(latency_ms=150))) as server:
        yield server


@pytest.fixture
async def harness(
    bus_place: Place, bus_prefix: str, stt: TurnsServer, expected_leftovers: list[str]
) -> AsyncIterator[Harness]:
    """Set the harness: a bus and an STT service; nothing runs on it yet."""
    expected_leftovers += ["sessions", "lanes", "dead", "{0}:turns", "{0}:state:*", "{0}:audio:*"]
    async with Harness.open(bus_place.url, bus_prefix, stt.url) as harness:
        yield harness
