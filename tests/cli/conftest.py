"""Fixtures of the command tests: a bus of their own, and the command line run against it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import IO

import pytest
from redis import Redis

from schemas import Keys
from tests.support.acl import GuardedRedis, as_user

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def redis_user() -> str:
    """Return the Redis user of the command. Commands in a worker's pod have the worker's rights."""
    return "worker"


@pytest.fixture(autouse=True)
def environment(
    request: pytest.FixtureRequest, redis_user: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Point the settings at the test's own bus, for this process and its children."""
    for name in os.environ:
        if name.startswith("TURNBUS_") or name in {"CARTESIA_API_KEY", "DEEPGRAM_API_KEY"}:
            monkeypatch.delenv(name)
    if "keys" in request.fixturenames:
        server: GuardedRedis = request.getfixturevalue("redis_server")
        monkeypatch.setenv("TURNBUS_REDIS_URL", as_user(server.url, redis_user))
        monkeypatch.setenv("TURNBUS_PREFIX", request.getfixturevalue("bus_prefix"))
    return dict(os.environ)


@pytest.fixture
def keys(bus_prefix: str) -> Keys:
    return Keys(bus_prefix)


@pytest.fixture
def bus(redis_server: GuardedRedis) -> Iterator[Redis]:
    """Connect as the admin, to inspect the bus and to prepare data."""
    with Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start `turnbus` as a process; kill it if it still runs at the end."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(
        *arguments: str,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "worker", *arguments]
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr)
        processes.append(process)
        return process

    yield start
    for process in processes:
        with process:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
