"""Fixtures: the real servers with which the model is compared."""

from collections.abc import Iterator

import pytest
from anyio.from_thread import start_blocking_portal

from tests.simulation.redis.dialect import REDIS_7_0, VALKEY_9, Dialect
from worker.local.redis import EmbeddedRedis


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedRedis]:
    """Run a server of its own: these tests remove every key and set up faults."""
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(EmbeddedRedis.start()) as server,
    ):
        yield server


@pytest.fixture(params=[VALKEY_9, REDIS_7_0], ids=["valkey", "redis_7"])
def dialect(request: pytest.FixtureRequest) -> Dialect:
    """Which server the model is compared with."""
    dialect: Dialect = request.param
    return dialect


@pytest.fixture
def real_server(dialect: Dialect, request: pytest.FixtureRequest) -> EmbeddedRedis:
    """That server. Redis 7.0 is shared with other tests, of which none leaves keys."""
    name = "valkey" if dialect is VALKEY_9 else "redis_7"
    server: EmbeddedRedis = request.getfixturevalue(name)
    return server
