"""The network: asyncio's transports on it, and its faults."""

import asyncio
import errno
import socket
import struct
from collections.abc import Awaitable, Callable

import anyio
import pytest
from aiohappyeyeballs import start_connection

from tests.simulation.virtual.hosts import Host
from tests.simulation.virtual.world import World

SEEDS = range(10)


class Recorder(asyncio.Protocol):
    """Records what a transport reports."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.received = b""
        self.parts: list[int] = []
        self.ended = False
        self.keep_open = True
        """What `eof_received` returns."""
        self.closed = False
        self.lost: Exception | None = None
        self.pauses: list[bool] = []
        """Each call of `pause_writing` (true) and `resume_writing`."""
        self.transport: asyncio.Transport = asyncio.Transport()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.parts.append(len(data))

    def eof_received(self) -> bool:
        self.ended = True
        return self.keep_open

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self.lost = error

    def pause_writing(self) -> None:
        self.pauses.append(True)

    def resume_writing(self) -> None:
        self.pauses.append(False)


async def open_pair(world: World) -> tuple[Recorder, Recorder]:
    """Connect two new hosts; return the server's and the client's protocol.

    The test's program drives both: a transport works in the process that it belongs to.
    """
    number = len(world.hosts)
    there, here = world.host(f"server-{number}"), world.host(f"client-{number}")
    server, client = Recorder(there), Recorder(here)

    async def serve() -> None:
        listening = await asyncio.get_running_loop().create_server(lambda: server, None, 80)
        await listening.serve_forever()

    async def connect() -> None:
        await asyncio.get_running_loop().create_connection(lambda: client, there.address, 80)
        await anyio.sleep_forever()

    there.start(serve)
    await anyio.sleep(1)
    here.start(connect)
    await anyio.sleep(1)
    return server, client


async def echo() -> None:
    """Send back whatever arrives at port 80."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1_000):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, None, 80)
    await server.serve_forever()


def run(program: Callable[[World], Awaitable[None]], seed: int = 1) -> World:
    """Run a program on a world of its own."""
    world = World(seed)

    async def call() -> None:
        await program(world)

    world.run(call, limit_s=10_000)
    assert world.errors == []
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_arrive_in_order_and_in_parts(seed: int) -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        sent = bytearray()
        for number in range(200):
            data = world.rng.randbytes(world.rng.randrange(1, 2_000))
            sent += data
            client.transport.write(data)
            if number % 3 == 0:
                await anyio.sleep(0.000_5)
        client.transport.writelines([b"last ", b"line"])
        await anyio.sleep(1)
        assert server.received == sent + b"last line"
        assert len(server.parts) > 10

    run(program, seed)


def test_connections_overtake_each_other() -> None:
    firsts: set[int] = set()

    async def program(world: World) -> None:
        pairs = [await open_pair(world) for _ in range(2)]
        for _ in range(50):
            for _, client in pairs:
                client.transport.write(b"x")
            before = [len(server.received) for server, _ in pairs]
            arrived: list[int] = []
            while not arrived:
                await anyio.sleep(0.000_01)
                arrived = [n for n, (server, _) in enumerate(pairs) if server.received[before[n] :]]
            firsts.update(arrived[:1])
            await anyio.sleep(1)

    run(program)
    assert firsts == {0, 1}


def test_latency_has_a_direction() -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        world.network.set_latency(client.host, server.host, 3, 3.5)
        client.transport.write(b"slow")
        server.transport.write(b"fast")
        await anyio.sleep(0.1)
        assert (client.received, server.received) == (b"fast", b"")
        await anyio.sleep(5)
        assert server.received == b"slow"

    run(program)


def test_half_close_leaves_the_other_direction_open() -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        client.transport.write(b"question")
        client.transport.write_eof()
        await anyio.sleep(1)
        assert (server.received, server.ended) == (b"question", True)
        server.transport.write(b"answer")
        await anyio.sleep(1)
        assert client.received == b"answer"
        assert not client.closed
        with pytest.raises(RuntimeError):
            client.transport.write(b"more")
        server.transport.close()
        await anyio.sleep(1)
        assert (server.closed, server.lost, client.ended) == (True, None, True)

    run(program)


def test_closed_transport_sends_the_rest_first() -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        client.transport.write(bytes(5_000_000))
        client.transport.close()
        assert client.transport.is_closing()
        await anyio.sleep(10)
        assert len(server.received) == 5_000_000
        assert server.ended
        assert (client.closed, client.lost) == (True, None)

    run(program)


def test_abort_drops_the_rest() -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        client.transport.write(bytes(5_000_000))
        client.transport.abort()
        await anyio.sleep(10)
        assert 0 < len(server.received) < 5_000_000
        assert (client.closed, client.lost) == (True, None)

    run(program)


def test_close_without_linger_resets() -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        raw = client.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.transport.abort()
        await anyio.sleep(1)
        assert isinstance(server.lost, ConnectionResetError)

    run(program)


def test_paused_reading_holds_the_writer_back() -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        server.transport.pause_reading()
        client.transport.set_write_buffer_limits(high=1_000)
        client.transport.write(bytes(world.network.window_bytes + 2_000))
        await anyio.sleep(1)
        assert (server.received, client.pauses) == (b"", [True])
        assert client.transport.get_write_buffer_size() == 2_000
        server.transport.resume_reading()
        await anyio.sleep(1)
        assert client.pauses == [True, False]
        assert len(server.received) == world.network.window_bytes + 2_000

    run(program)


def test_transport_knows_its_addresses() -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        assert client.transport.get_extra_info("peername") == (server.host.address, 80)
        assert server.transport.get_extra_info("sockname") == (server.host.address, 80)
        name = client.transport.get_extra_info("sockname")
        assert name == server.transport.get_extra_info("peername")
        assert name[0] == client.host.address

    run(program)


@pytest.mark.parametrize("after_bytes", [0, 1, 7, 99])
def test_cut_comes_after_so_many_bytes(after_bytes: int) -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        client.transport.write(b"before")
        await anyio.sleep(1)
        world.network.cut(client.host, server.host, after_bytes=after_bytes)
        server.transport.write(bytes(1_000))
        await anyio.sleep(1)
        if after_bytes:
            assert len(client.received) == 1_000
        for _ in range(10):
            client.transport.write(bytes(10))
        await anyio.sleep(1)
        assert len(server.received) == len(b"before") + after_bytes
        for end in (server, client):
            assert isinstance(end.lost, ConnectionResetError)
        assert world.network.connections(client.host, server.host) == 0

    run(program)


@pytest.mark.parametrize("both", [True, False])
def test_partition_delays_data(both: bool) -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        world.network.partition(client.host, server.host, both=both)
        client.transport.write(b"there")
        server.transport.write(b"back")
        client.transport.write_eof()
        await anyio.sleep(100)
        assert (server.received, server.ended) == (b"", False)
        assert client.received == (b"" if both else b"back")
        world.network.heal(client.host, server.host)
        await anyio.sleep(1)
        assert (server.received, server.ended, client.received) == (b"there", True, b"back")

    run(program)


@pytest.mark.parametrize("seed", SEEDS)
def test_partition_keeps_the_order_of_one_instant(seed: int) -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        client.transport.write(b"1")
        world.network.partition(client.host, server.host)
        client.transport.write(b"2")
        client.transport.write(b"3")
        await anyio.sleep(1)
        world.network.heal(client.host, server.host)
        await anyio.sleep(1)
        assert server.received == b"123"

    run(program, seed)


def test_long_partition_times_out_the_sender() -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        world.network.partition(client.host, server.host)
        client.transport.write(b"there")
        await anyio.sleep(925)
        assert isinstance(client.lost, TimeoutError)
        world.network.heal(client.host, server.host)
        await anyio.sleep(1)
        assert not server.closed, "the server sent nothing, so it does not know"
        server.transport.write(b"x")
        await anyio.sleep(1)
        assert isinstance(server.lost, ConnectionResetError)

    run(program)


def test_connect_waits_for_the_end_of_a_partition() -> None:
    async def program(world: World) -> None:
        host = world.host("echo")
        host.start(echo)
        await anyio.sleep(1)
        world.network.partition(world.control, host)
        with pytest.raises(TimeoutError):
            with anyio.fail_after(5):
                await asyncio.open_connection("echo", 80)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_ask_echo, "echo")
            await anyio.sleep(10)
            world.network.heal(world.control, host)
            with anyio.fail_after(20):
                while tasks._tasks:  # type: ignore[attr-defined]
                    await anyio.sleep(1)

    run(program)


async def _ask_echo(name: str) -> None:
    reader, writer = await asyncio.open_connection(name, 80)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    await writer.wait_closed()


def test_unknown_address_times_out() -> None:
    async def program(world: World) -> None:
        with pytest.raises(TimeoutError) as caught:
            await asyncio.open_connection("10.9.9.9", 80)
        assert caught.value.errno == errno.ETIMEDOUT
        assert 127 <= world.now() < 128

    run(program)


def test_refused_port_accepts_again() -> None:
    async def program(world: World) -> None:
        host = world.host("echo")
        with pytest.raises(ConnectionRefusedError):
            await _ask_echo("echo")
        host.start(echo)
        await anyio.sleep(1)
        await _ask_echo("echo")
        world.network.refuse(host, 80)
        with pytest.raises(ConnectionRefusedError):
            await _ask_echo("echo")
        world.network.accept(host, 80)
        await _ask_echo("echo")

    run(program)


def test_stall_holds_data_but_no_new_connection() -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        world.network.stall(client.host, server.host)
        client.transport.write(b"there")
        server.transport.write(b"back")
        await anyio.sleep(10)
        assert (server.received, client.received) == (b"", b"back")
        host = world.host("stalled")
        host.start(echo)
        await anyio.sleep(1)
        world.network.stall(world.control, host)
        reader, writer = await asyncio.open_connection("stalled", 80)
        writer.write(b"x")
        with anyio.move_on_after(5) as scope:
            await reader.read(1)
        assert scope.cancelled_caught
        world.network.heal(host, world.control)
        assert await reader.read(1) == b"x"
        writer.close()

    run(program)


def test_stall_lasts_from_the_first_until_it_is_healed() -> None:
    world = World(1)
    a, b = world.host("a"), world.host("b")

    async def program() -> None:
        assert world.network.stalled_s(a, b) == 0
        world.network.stall(a, b)
        await anyio.sleep(2)
        world.network.stall(b, a)
        world.network.stall(a, b)
        await anyio.sleep(1)
        lasted_s = world.network.stalled_s(a, b), world.network.stalled_s(b, a)
        assert lasted_s == pytest.approx((3, 3))
        world.network.heal(b, a)
        assert world.network.stalled_s(a, b) == 0

    world.run(program, limit_s=10)
    assert world.errors == []


def test_slow_link_takes_its_time() -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        world.network.slow(client.host, server.host, bytes_per_s=1_000)
        for _ in range(10):
            client.transport.write(bytes(1_000))
        await anyio.sleep(5)
        assert 4_000 <= len(server.received) <= 6_000
        await anyio.sleep(6)
        assert len(server.received) == 10_000

    run(program)


def test_lost_connection_is_silent_for_ever() -> None:
    async def program(world: World) -> None:
        server, client = await open_pair(world)
        world.network.lose(client.host, server.host)
        client.transport.write(b"there")
        await anyio.sleep(900)
        assert (server.received, server.closed, client.closed) == (b"", False, False)
        await anyio.sleep(30)
        assert isinstance(client.lost, TimeoutError)
        assert not server.closed

    run(program)


def test_second_address_of_a_name_answers() -> None:
    async def program(world: World) -> None:
        dark, bright = world.host("dark"), world.host("bright")
        world.network.name("api", dark, bright)
        bright.start(echo)
        await anyio.sleep(1)
        world.network.partition(world.control, dark)
        loop = asyncio.get_running_loop()
        addresses = await loop.getaddrinfo("api", 80, type=socket.SOCK_STREAM)
        with await start_connection(addresses, happy_eyeballs_delay=0.25) as connected:
            assert connected.getpeername() == (bright.address, 80)
            await loop.sock_sendall(connected, b"hello ")
            assert connected.sendmsg([b"wor", b"ld"]) == 5
            received = b""
            while len(received) < 11:
                received += await loop.sock_recv(connected, 100)
            assert received == b"hello world"

    run(program)


def test_unknown_name_is_not_found() -> None:
    async def program(world: World) -> None:
        world.network.name("gone")
        for name in ("nowhere", "gone"):
            with pytest.raises(socket.gaierror):
                await asyncio.open_connection(name, 80)

    run(program)


def test_loopback_reaches_the_own_host_only() -> None:
    async def program(world: World) -> None:
        host = world.host("other")

        async def local() -> None:
            server = await asyncio.start_server(
                lambda reader, writer: writer.close(), "127.0.0.1", 80
            )
            reader, writer = await asyncio.open_connection("localhost", 80)
            assert await reader.read() == b""
            writer.close()
            await server.serve_forever()

        host.start(local)
        await anyio.sleep(1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("other", 80)

    run(program)


def test_port_in_use_is_rejected() -> None:
    async def program(_: World) -> None:
        server = await asyncio.start_server(lambda reader, writer: None, None, 80)
        with pytest.raises(OSError, match="address already in use") as caught:
            await asyncio.start_server(lambda reader, writer: None, None, 80)
        assert caught.value.errno == errno.EADDRINUSE
        server.close()
        free = await asyncio.start_server(lambda reader, writer: None, None, 0)
        assert free.sockets[0].getsockname()[1] > 1_024
        free.close()

    run(program)


def test_server_waits_for_its_connections() -> None:
    async def program(_: World) -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), None, 80)
        reader, writer = await asyncio.open_connection("127.0.0.1", 80)
        assert await reader.read() == b""
        writer.close()
        async with server:
            pass
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", 80)

    run(program)


def test_socket_outside_of_a_process_is_rejected() -> None:
    errors: list[RuntimeError] = []

    def open_socket() -> None:
        try:
            socket.socket()
        except RuntimeError as error:
            errors.append(error)

    async def program(world: World) -> None:
        world.loop.at(2.0, open_socket)
        await anyio.sleep(3)

    run(program)
    assert len(errors) == 1
