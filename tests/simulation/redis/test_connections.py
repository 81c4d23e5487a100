"""What connections receive, byte for byte: waiting, transactions, subscriptions, pipelines."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial

import pytest

from tests.simulation.redis.clients import Client
from tests.simulation.redis.dialect import Dialect
from tests.simulation.redis.running import listening, new_server
from tests.simulation.redis.server import RedisServer
from tests.support.polling import eventually, no_longer
from worker.bus.client.connection import connect
from worker.local.redis import EmbeddedRedis

Step = tuple[int, str]
"""A connection by its number, and its next command; `~` does not read the reply yet.

For `WAIT`, the number of connections that wait before the next step.
"""

WAIT = -1

GROUP = "XGROUP CREATE a g 0 MKSTREAM"
WAITING = [
    [(0, "~XREAD BLOCK 0 STREAMS a b $ $"), (WAIT, "1"), (1, "XADD b 1-1 n 1")],
    [(0, "~XREAD BLOCK 0 STREAMS a 0"), (WAIT, "1"), (1, "SET a x"), (1, "DEL a"),
     (1, "XADD a 1-1 n 1")],
    [(1, "XADD a 1-1 n 1"), (0, "~XREAD BLOCK 0 STREAMS a $"), (WAIT, "1"), (1, "XDEL a 1-1"),
     (1, "XADD a 2-1 n 1")],
    [(0, "XREAD BLOCK 1 STREAMS a $")],
    [(0, "~XREAD BLOCK 0 STREAMS a $"), (WAIT, "1"), (1, "MULTI"), (1, "XADD a 1-1 n 1"),
     (1, "XADD a 1-2 n 1"), (1, "EXEC")],
    [(0, "~XREAD COUNT 1 BLOCK 0 STREAMS a $"), (0, "~PING"), (2, "~XREAD BLOCK 0 STREAMS a $"),
     (WAIT, "2"), (1, "XADD a 1-1 n 1")],
    [(1, GROUP), (0, "~XREADGROUP GROUP g me BLOCK 0 STREAMS a >"), (WAIT, "1"),
     (2, "~XREADGROUP GROUP g you BLOCK 0 STREAMS a >"), (WAIT, "2"), (1, "XADD a 1-1 n 1"),
     (WAIT, "1"), (1, "XADD a 1-2 n 1"), (1, "XPENDING a g")],
    [(1, GROUP), (0, "~XREADGROUP GROUP g me BLOCK 0 STREAMS a >"), (WAIT, "1"), (1, "DEL a")],
    [(1, GROUP), (0, "~XREADGROUP GROUP g me BLOCK 0 STREAMS a >"), (WAIT, "1"),
     (1, "XGROUP DESTROY a g")],
    [(1, GROUP), (0, "XREADGROUP GROUP g me BLOCK 0 STREAMS a 0")],
    [(0, "MULTI"), (0, "XREAD BLOCK 0 STREAMS a $"), (0, "EXEC")],
]  # fmt: skip
OTHERS = [
    [(0, "MULTI"), (0, "XADD a 1-1 n 1"), (0, "XLEN a"), (0, "GET a"), (0, "EXEC"), (0, "XLEN a")],
    [(0, "MULTI"), (0, "XADD a 1-1 n 1"), (0, "DISCARD"), (0, "XLEN a")],
    [(0, "MULTI"), (0, "GET"), (0, "XLEN a"), (0, "EXEC")],
    [(0, "MULTI"), (0, "NOSUCH"), (0, "EXEC")],
    [(0, "EXEC"), (0, "DISCARD")],
    [(0, "SUBSCRIBE c"), (0, "SUBSCRIBE d"), (1, "PUBSUB NUMSUB c d e"),
     (1, "PUBSUB CHANNELS [d-f]"), (0, "PING"), (0, "PING x"), (0, "GET a"),
     (0, "UNSUBSCRIBE c"), (1, "PUBSUB NUMSUB c d"),
     (0, "UNSUBSCRIBE"), (0, "UNSUBSCRIBE")],
    [(0, "CLIENT GETNAME"), (0, "CLIENT SETNAME x"), (0, "CLIENT GETNAME"), (0, "CLIENT WHAT")],
    [(0, "SELECT 0"), (0, "PING"), (0, "PING x"), (0, "PING x y"), (0, "AUTH"), (0, "AUTH x")],
    [(0, "SELECT"), (0, "PUBSUB"), (0, "SUBSCRIBE"), (0, "CLIENT")],
]  # fmt: skip


@pytest.mark.parametrize("steps", WAITING + OTHERS, ids=lambda steps: steps[0][1][:30])
async def test_clients_receive_the_same_replies(
    real_server: EmbeddedRedis, dialect: Dialect, steps: Sequence[Step]
) -> None:
    server = RedisServer(time.time, random.Random(1), dialect)
    async with connect(real_server.url) as admin, listening(server) as url:
        await admin.flushall()

        async def waiting_there() -> int:
            return int((await admin.info("clients"))["blocked_clients"])

        async def waiting_here() -> int:
            return len(server.waiting)

        expected = await _transcript(real_server.url, steps, waiting_there)
        found = await _transcript(url, steps, waiting_here)
    assert found == expected


async def _transcript(
    url: str, steps: Sequence[Step], count_waiting: Callable[[], Awaitable[int]]
) -> list[tuple[int, bytes]]:
    """Return what each connection receives."""
    received: list[tuple[int, bytes]] = []
    pending: list[int] = []
    async with AsyncExitStack() as stack:
        clients = {
            number: await stack.enter_async_context(Client.open(url))
            for number in sorted({number for number, _ in steps if number != WAIT})
        }
        for number, text in steps:
            if number == WAIT:
                await eventually(partial(_are_waiting, count_waiting, int(text)), "waiting clients")
                continue
            clients[number].send(text.removeprefix("~"))
            if text.startswith("~"):
                pending.append(number)
            else:
                received.append((number, await clients[number].receive()))
        received += [(number, await clients[number].receive()) for number in pending]
    return received


async def _are_waiting(count_waiting: Callable[[], Awaitable[int]], count: int) -> bool:
    return await count_waiting() == count


async def test_commands_may_arrive_in_any_pieces() -> None:
    async with listening(new_server()) as url, Client.open(url) as client:
        for byte in b"*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nPING\r\n$2\r\n\r\n\r\n":
            client.write(bytes([byte]))
            await asyncio.sleep(0)
        assert [await client.receive(), await client.receive()] == [b"+PONG\r\n", b"$2\r\n\r\n\r\n"]


async def test_what_is_no_command_closes_the_connection() -> None:
    async with listening(new_server()) as url, Client.open(url) as client:
        client.write(b"*1\r\n:1\r\n")
        assert (await client.receive()).startswith(b"-ERR Protocol error")
        with pytest.raises(asyncio.IncompleteReadError):
            await client.receive()


async def test_closed_connection_waits_no_more() -> None:
    server = new_server()
    async with listening(server) as url:
        async with Client.open(url) as client, Client.open(url) as subscriber:
            client.send("XREAD BLOCK 0 STREAMS a $")
            subscriber.send("SUBSCRIBE c")
            await eventually(lambda: len(server.waiting) and server.subscribers(b"c"), "both")
        await no_longer(lambda: len(server.waiting) or server.subscribers(b"c"), "both")
        assert not server.connections


async def test_demoted_server_interrupts_waiting_clients(
    real_server: EmbeddedRedis, dialect: Dialect
) -> None:
    server = RedisServer(time.time, random.Random(1), dialect)
    async with (
        connect(real_server.url) as admin,
        listening(server) as url,
        Client.open(url) as here,
        Client.open(real_server.url) as there,
    ):
        for client in (here, there):
            client.send("XREAD BLOCK 0 STREAMS none $")
        await eventually(lambda: len(server.waiting), "the client here")

        async def waits_there() -> bool:
            return bool((await admin.info("clients"))["blocked_clients"])

        await eventually(waits_there, "the client there")
        server.demote()
        await admin.replicaof("127.0.0.1", 1)
        try:
            assert await here.receive() == await there.receive()
            for client in (here, there):
                with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                    await client.receive()
        finally:
            await admin.replicaof("NO", "ONE")


async def test_lost_reply_of_a_waiting_read_leaves_its_entry_pending() -> None:
    server = new_server()
    server.model.execute("XGROUP", "CREATE", "a", "g", "0", "MKSTREAM")
    async with listening(server) as url, Client.open(url) as client:
        server.lose_next_reply(lambda args: args[0] == b"XREADGROUP")
        client.send("XREADGROUP GROUP g me BLOCK 0 STREAMS a >")
        await eventually(lambda: len(server.waiting), "the client")
        server.execute("XADD", "a", "1-1", "n", "1")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.receive()
    pending = [1, b"1-1", b"1-1", [[b"me", b"1"]]]
    assert server.model.execute("XPENDING", "a", "g") == pending
    server.restart()
    assert server.model.execute("XPENDING", "a", "g") == pending
