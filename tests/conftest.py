"""Fixtures every test may use."""

from collections.abc import AsyncIterator, Iterator
from fnmatch import fnmatchcase
from uuid import uuid4

import pytest
import redis as blocking
from anyio.from_thread import start_blocking_portal
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.stage import KEY, Stage
from worker.local.engines.script import ScriptEngine, ScriptOptions
from worker.local.redis import EmbeddedRedis
from worker.local.server.server import TurnsServer
from worker.local.server.settings import ServerSettings


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio: redis-py and websockets need it."""
    return "asyncio"


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """One server for the whole run; tests that kill or fill theirs start their own."""
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(EmbeddedRedis.start()) as server,
    ):
        yield server


@pytest.fixture
async def redis(redis_server: EmbeddedRedis) -> AsyncIterator[Redis]:
    """Connect as the worker does: raw bytes, and no command ever sent twice."""
    retry = Retry(NoBackoff(), 0)
    async with Redis.from_url(redis_server.url, protocol=2, retry=retry) as client:
        yield client


@pytest.fixture
def expected_leftovers() -> list[str]:
    """Patterns (`fnmatch`, without prefix) of the keys a test means to leave: add to it."""
    return []


@pytest.fixture
def bus_prefix(redis_server: EmbeddedRedis, expected_leftovers: list[str]) -> Iterator[str]:
    """Key prefix of one test. Keys left under it that were not expected fail the test."""
    prefix = f"test-{uuid4().hex[:12]}"
    yield prefix
    with blocking.Redis.from_url(redis_server.url) as client:
        left = [key.decode() for key in client.scan_iter(f"{prefix}:*", count=1_000)]
        if left:
            client.delete(*left)
    names = sorted(key.removeprefix(f"{prefix}:") for key in left)
    leaked = [
        name
        for name in names
        if not any(fnmatchcase(name, pattern) for pattern in expected_leftovers)
    ]
    assert not leaked, f"keys left behind: {', '.join(leaked)}"


@pytest.fixture
async def stt() -> AsyncIterator[TurnsServer]:
    """Run the STT server with the script engine, 150 ms behind its audio."""
    settings = ServerSettings(port=0, api_keys=frozenset({KEY}))
    async with TurnsServer.serve(settings, ScriptEngine(ScriptOptions(latency_ms=150))) as server:
        yield server


@pytest.fixture
def stage(
    redis: Redis,
    redis_server: EmbeddedRedis,
    bus_prefix: str,
    stt: TurnsServer,
    expected_leftovers: list[str],
) -> Stage:
    """Set the stage: a bus and an STT service; nothing runs on it yet."""
    expected_leftovers += ["sessions", "lanes", "dead", "{0}:turns", "{0}:state:*", "{0}:audio:*"]
    return Stage(redis, redis_server.url, bus_prefix, stt.url)
