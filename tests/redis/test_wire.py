"""A wire returns each command's own reply, whatever happens to its connection."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from hiredis import pack_command
from redis import exceptions
from redis.asyncio import Redis

from tests.support.acl import GuardedRedis
from tests.support.certificates import Authority, add_tls
from tests.support.odd_redis import GONE, Front
from worker.bus.client import wire as module
from worker.bus.client.connection import connect
from worker.bus.client.wire import Wire, Wires
from worker.local.redis import EmbeddedRedis

LOOPS = pytest.mark.parametrize("use_uvloop", [False, True], ids=["asyncio", "uvloop"])


def packed(*commands: tuple[Any, ...]) -> bytes:
    """Encode commands."""
    return b"".join(pack_command(command) for command in commands)


async def echo(wire: Wire | Wires, *texts: str) -> None:
    commands = packed(*(("ECHO", text) for text in texts))
    assert await wire.exchange(commands, len(texts)) == [text.encode() for text in texts]


@asynccontextmanager
async def odd_server(*parts: bytes | float) -> AsyncIterator[str]:
    """Serve a connection: OK to each command of the login, then these bytes and delays."""

    async def serve(client: ByteStream) -> None:
        with suppress(*GONE):
            async with client:
                async for data in client:
                    if b"SETINFO" in data:
                        await client.send(b"+OK\r\n" * data.count(b"SETINFO"))
                        continue
                    for part in parts:
                        if isinstance(part, bytes):
                            await client.send(part)
                        else:
                            await anyio.sleep(part)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"redis://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/0"
        tasks.cancel_scope.cancel()


@LOOPS
def test_replies_come_in_order(redis_server: GuardedRedis, use_uvloop: bool) -> None:
    async def run() -> None:
        async with connect(redis_server.url) as redis:
            wire = Wire(redis)
            await echo(wire, "a", "b", "c")
            large = "x" * 1_000_000
            await echo(wire, large, *map(str, range(500)), large)
            wire.close()

    anyio.run(run, backend_options={"use_uvloop": use_uvloop})


async def test_error_replies_take_the_place_of_replies(redis: Redis) -> None:
    wire = Wire(redis)
    commands = packed(("ECHO", "a"), ("EVALSHA", "0" * 40, 0), ("NO-SUCH",), ("ECHO", "b"))
    first, no_script, unknown, last = await wire.exchange(commands, 4)
    assert (first, last) == (b"a", b"b")
    assert type(no_script) is exceptions.NoScriptError
    assert type(unknown) is exceptions.ResponseError
    wire.close()


@LOOPS
def test_lost_connection_is_replaced(redis_server: GuardedRedis, use_uvloop: bool) -> None:
    async def run() -> None:
        async with connect(redis_server.url) as redis:
            wire = Wire(redis)
            await echo(wire, "a")
            assert wire._link is not None
            wire._link._transport.abort()
            await echo(wire, "b")
            wire.close()
            await echo(wire, "c")
            wire.close()

    anyio.run(run, backend_options={"use_uvloop": use_uvloop})


async def test_connection_that_the_server_closed_is_replaced(redis: Redis) -> None:
    wire = Wire(redis)
    (number,) = await wire.exchange(packed(("CLIENT", "ID")), 1)
    await redis.client_kill_filter(_id=number)
    assert wire._link is not None
    with anyio.fail_after(10):
        while wire._link.usable:
            await anyio.sleep(0.001)
    await echo(wire, "a")
    wire.close()


@LOOPS
def test_connection_lost_during_an_exchange_is_an_error(
    redis_server: GuardedRedis, use_uvloop: bool
) -> None:
    async def run() -> None:
        async with connect(redis_server.url) as redis:
            wire = Wire(redis)
            (number,) = await wire.exchange(packed(("CLIENT", "ID")), 1)

            async def cut() -> None:
                await redis.client_kill_filter(_id=number)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cut)
                with pytest.raises(
                    exceptions.ConnectionError, match=r"Connection closed|reading from"
                ):
                    await wire.exchange(packed(("BLPOP", "no-such-list", 60)), 1)
            await echo(wire, "a")
            wire.close()

    anyio.run(run, backend_options={"use_uvloop": use_uvloop})


async def test_cancelled_exchange_leaves_no_reply_to_the_next(redis: Redis) -> None:
    wire = Wire(redis)
    await echo(wire, "a")
    with anyio.move_on_after(0.02) as scope:
        await wire.exchange(packed(("BLPOP", "no-such-list", 0.05), ("ECHO", "late")), 2)
    assert scope.cancelled_caught
    await anyio.sleep(0.1)
    await echo(wire, "b")
    wire.close()


async def test_connection_is_closed_if_connecting_is_cancelled(redis_server: GuardedRedis) -> None:
    async with Front.open(redis_server) as front:
        front.answer = b""
        async with connect(f"redis://127.0.0.1:{front.port}/0") as redis:
            wire = Wire(redis)
            with anyio.move_on_after(0.05) as scope:
                await wire.exchange(packed(("PING",)), 1)
            assert scope.cancelled_caught
            assert wire._link is None


async def test_silent_server_is_a_timeout() -> None:
    async with odd_server() as url, connect(f"{url}?socket_timeout=0.1") as redis:
        wire = Wire(redis)
        with anyio.fail_after(5), pytest.raises(exceptions.TimeoutError, match=r"127\.0\.0\.1"):
            await wire.exchange(packed(("PING",)), 1)
        assert wire._link is None


async def test_slow_server_is_no_timeout_while_it_sends() -> None:
    parts: list[bytes | float] = [0.15, b"+a\r\n"] * 4
    async with odd_server(*parts) as url, connect(f"{url}?socket_timeout=0.2") as redis:
        wire = Wire(redis)
        commands = packed(*[("PING",)] * 4)
        assert await wire.exchange(commands, 4) == [b"a"] * 4
        wire.close()


async def test_reply_that_is_no_redis_protocol_is_an_error() -> None:
    async with odd_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url, connect(url) as redis:
        wire = Wire(redis)
        with pytest.raises(exceptions.InvalidResponse):
            await wire.exchange(packed(("PING",)), 1)
        assert wire._link is None


async def test_reply_to_no_command_replaces_the_connection() -> None:
    async with odd_server(b"+a\r\n", 0.05, b"+b\r\n") as url, connect(url) as redis:
        wire = Wire(redis)
        assert await wire.exchange(packed(("PING",)), 1) == [b"a"]
        link = wire._link
        assert link is not None
        with anyio.fail_after(10):
            while link.usable:
                await anyio.sleep(0.01)
        assert await wire.exchange(packed(("PING",)), 1) == [b"a"]
        assert wire._link is not link
        wire.close()


@pytest.mark.parametrize("text", ["READONLY You can't write", "NOAUTH Authentication required."])
async def test_login_or_master_that_was_lost_replaces_the_connection(text: str) -> None:
    async with odd_server(f"-{text}\r\n".encode()) as url, connect(url) as redis:
        wire = Wire(redis)
        (reply,) = await wire.exchange(packed(("PING",)), 1)
        assert isinstance(reply, exceptions.RedisError)
        assert wire._link is None


async def test_demoted_master_replaces_the_connections_that_only_read() -> None:
    """A replica answers XREAD too, perhaps without new entries."""
    async with (
        GuardedRedis.start() as server,
        connect(server.url) as redis,
        connect(server.url) as other,
    ):
        reads, writes, unaffected = Wire(redis), Wire(redis), Wire(other)
        for wire in (reads, writes, unaffected):
            await echo(wire, "a")
        before = reads._link, unaffected._link
        await redis.replicaof("127.0.0.1", 1)
        (reply,) = await writes.exchange(packed(("SET", "a", "b")), 1)
        assert isinstance(reply, exceptions.ReadOnlyError)
        await echo(reads, "a")
        await echo(unaffected, "a")
        assert reads._link is not before[0]
        assert unaffected._link is before[1]
        with pytest.raises(exceptions.ReadOnlyError):
            await redis.set("a", "b")  # over a connection of the client's pool
        assert reads._link is not None
        assert not reads._link.usable
        for wire in (reads, writes, unaffected):
            wire.close()


async def test_wire_over_tls(tmp_path: Path, redis_7_binary: Path) -> None:
    authority = Authority(tmp_path)
    async with EmbeddedRedis.start(binary=redis_7_binary) as server:
        port = await add_tls(server, authority, authority.issue("localhost"))
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={authority.file}"
        async with connect(url) as redis:
            wire = Wire(redis)
            await echo(wire, *map(str, range(100)))
            assert wire._link is not None
            assert isinstance(
                wire._link._transport.get_extra_info("ssl_object"), ssl.SSLObject | ssl.SSLSocket
            )
            wire.close()


async def test_wires_exchange_at_the_same_time(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WIRES", 4)
    wires = Wires(redis)
    done: list[int] = []

    async def wait(number: int) -> None:
        await wires.exchange(packed(("BLPOP", f"no-such-list-{number}", 0.1)), 1)
        done.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(wait, number)
        await anyio.sleep(0.05)
        assert len(wires._idle) == 0
    assert sorted(done) == [*range(6)]
    assert len(wires._idle) == 3
    wires.close()
    await echo(wires, "a")
    wires.close()
