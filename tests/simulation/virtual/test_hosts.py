"""Hosts: crashes, power losses, pauses, clocks, and how a process ends."""

import asyncio
import logging
import os
import socket
import time

import anyio
import pytest

from tests.simulation.virtual.hosts import Host, Process
from tests.simulation.virtual.test_network import echo, open_pair
from tests.simulation.virtual.world import World

SEEDS = range(10)


class Steps:
    """A program that counts its steps, and notes if a `finally` block runs."""

    def __init__(self) -> None:
        self.steps = 0
        self.cleaned = False

    async def __call__(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.count)
                await self.count()
        finally:
            self.cleaned = True

    async def count(self) -> None:
        try:
            while True:
                self.steps += 1
                await asyncio.sleep(0.1)
        finally:
            self.cleaned = True
            await asyncio.sleep(1)


@pytest.mark.parametrize("end", ["crash", "vanish"])
def test_crashed_process_runs_nothing(end: str) -> None:
    world = World(1)
    host, program = world.host("host"), Steps()

    async def control() -> None:
        process = host.start(program)
        await anyio.sleep(5)
        getattr(host, end)()
        steps = program.steps
        assert steps > 50
        assert process.done
        await anyio.sleep(1_000)
        assert (program.steps, program.cleaned) == (steps, False)

    world.run(control, limit_s=2_000)


def test_crash_comes_after_the_chosen_callback() -> None:
    """Each number of callbacks ends the program one step later, between two awaits."""
    ended: list[list[int]] = []
    for callbacks in range(1, 12):
        world = World(1)
        host = world.host("host")
        steps: list[int] = []

        async def program(steps: list[int] = steps) -> None:
            try:
                for number in range(8):
                    await asyncio.sleep(0)
                    steps.append(number)
                await asyncio.sleep(100)
            finally:
                steps.append(-1)

        async def control(
            host: Host = host, callbacks: int = callbacks, steps: list[int] = steps
        ) -> None:
            process = host.start(program)
            host.crash_after(callbacks)
            await anyio.sleep(10)
            assert process.done is (callbacks <= 9)
            ended.append(list(steps))

        world.run(control, limit_s=20)
    assert ended == [list(range(min(callbacks - 1, 8))) for callbacks in range(1, 12)]


def test_process_kills_itself_between_two_awaits() -> None:
    world = World(1)
    host = world.host("host")
    reached: list[str] = []

    async def program() -> None:
        host.crash()
        reached.append("the await")
        await asyncio.sleep(0)
        reached.append("after it")

    async def control() -> None:
        process = host.start(program)
        await process.wait()
        await anyio.sleep(1)
        assert reached == ["the await"]

    world.run(control, limit_s=10)


def test_end_of_a_run_is_silent(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    world = World(1)
    hosts = [world.host(name) for name in ("one", "two", "three")]

    async def talk() -> None:
        try:
            reader, _ = await asyncio.open_connection("two", 80)
            await reader.read()
        finally:
            logging.getLogger().error("cleaned up")
            await asyncio.open_connection("two", 80)

    async def control() -> None:
        hosts[1].start(echo)
        await anyio.sleep(1)
        hosts[0].start(talk)
        hosts[2].start(talk)
        await anyio.sleep(1)
        hosts[0].crash()

    world.run(control, limit_s=10)
    lines = list(world.log.lines)
    assert world.network.connections(hosts[1], hosts[2]) == 1
    assert (caplog.records, list(recwarn), world.errors) == ([], [], [])
    assert world.log.lines == lines


def test_peer_of_a_crashed_host_sees_the_end() -> None:
    world = World(1)

    async def control() -> None:
        server, client = await open_pair(world)
        client.transport.write(b"last words")
        client.host.crash()
        await anyio.sleep(1)
        assert server.received == b"last words"
        assert server.ended
        for _ in range(2):  # the second write finds the reset
            server.transport.write(b"answer")
            await anyio.sleep(1)
        assert isinstance(server.lost, ConnectionResetError)

    world.run(control, limit_s=100)


def test_crash_with_unread_data_resets() -> None:
    world = World(1)

    async def control() -> None:
        server, client = await open_pair(world)
        client.transport.pause_reading()
        server.transport.write(b"unread")
        await anyio.sleep(1)
        client.host.crash()
        await anyio.sleep(1)
        assert isinstance(server.lost, ConnectionResetError)

    world.run(control, limit_s=100)


def test_power_loss_is_silent_until_the_host_boots() -> None:
    world = World(1)

    async def control() -> None:
        server, client = await open_pair(world)
        client.host.vanish()
        await anyio.sleep(500)
        server.transport.write(b"are you there")
        await anyio.sleep(10)
        assert (server.ended, server.lost) == (False, None)
        client.host.start(anyio.sleep_forever)
        await anyio.sleep(1)
        assert isinstance(server.lost, ConnectionResetError)

    world.run(control, limit_s=2_000)


def test_power_loss_times_out_what_was_sent() -> None:
    world = World(1)

    async def control() -> None:
        server, client = await open_pair(world)
        client.host.vanish()
        server.transport.write(b"are you there")
        await anyio.sleep(923)
        assert not server.closed
        await anyio.sleep(2)
        assert isinstance(server.lost, TimeoutError)

    world.run(control, limit_s=2_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_pause_past_a_timeout(seed: int) -> None:
    """The paused process finds its timeout and the data that arrived: both in one iteration."""
    world = World(seed)
    host = world.host("paused")
    outcome: list[str] = []

    async def program() -> None:
        server = await asyncio.start_server(read, None, 80)
        await server.serve_forever()

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with anyio.fail_after(5):
                outcome.append((await reader.readexactly(4)).decode())
        except TimeoutError:
            outcome.append("timeout")
        writer.close()

    async def control() -> None:
        host.start(program)
        await anyio.sleep(1)
        _, writer = await asyncio.open_connection("paused", 80)
        await anyio.sleep(1)
        host.pause()
        writer.write(b"data")
        await anyio.sleep(10)
        assert outcome == []
        host.resume()
        await anyio.sleep(1)
        assert len(outcome) == 1
        writer.close()

    world.run(control, limit_s=100)
    assert outcome in (["data"], ["timeout"])


def test_paused_host_takes_data_until_its_buffer_is_full() -> None:
    world = World(1)
    size = 10_000_000

    async def control() -> None:
        server, client = await open_pair(world)
        server.host.pause()
        client.transport.write(bytes(size))
        await anyio.sleep(10)
        assert client.transport.get_write_buffer_size() == size - world.network.window_bytes
        assert client.pauses == [True]
        server.host.resume()
        await anyio.sleep(10)
        assert client.transport.get_write_buffer_size() == 0
        assert client.pauses == [True, False]
        assert len(server.received) == size

    world.run(control, limit_s=100)


def test_paused_host_still_accepts_connections() -> None:
    world = World(1)
    host = world.host("echo")

    async def control() -> None:
        host.start(echo)
        await anyio.sleep(1)
        host.pause()
        reader, writer = await asyncio.open_connection("echo", 80)
        writer.write(b"hello")
        with anyio.move_on_after(10) as scope:
            await reader.read(1)
        assert scope.cancelled_caught
        host.resume()
        assert await reader.readexactly(5) == b"hello"
        writer.close()

    world.run(control, limit_s=100)


def test_skew_moves_the_wall_clock_of_one_host() -> None:
    world = World(1)
    hosts = [world.host("right"), world.host("wrong")]
    seen: dict[str, tuple[float, float]] = {}

    async def program() -> None:
        await asyncio.sleep(1)
        began = time.time(), time.monotonic()
        await asyncio.sleep(10)
        assert time.time_ns() // 10**9 == int(time.time())
        seen[socket.gethostname()] = time.time(), time.monotonic()
        assert time.time() - began[0] == pytest.approx(10, abs=0.01)
        assert time.monotonic() - began[1] == pytest.approx(10, abs=0.01)

    async def control() -> None:
        hosts[1].skew_s = 3_600
        for host in hosts:
            host.start(program)
        await anyio.sleep(20)

    world.run(control, limit_s=100)
    assert seen["wrong"][0] - seen["right"][0] == pytest.approx(3_600, abs=0.01)
    assert abs(seen["wrong"][1] - seen["right"][1]) > 1


def test_process_ends_like_asyncio_run() -> None:
    world = World(1)
    host = world.host("host")
    cleaned: list[str] = []
    connections: list[object] = []

    async def linger() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await asyncio.sleep(1)
            cleaned.append("lingerer")

    async def program() -> None:
        task = asyncio.create_task(linger(), name="lingerer")
        connections.append(await asyncio.open_connection("10.0.0.1", 80))
        assert not task.done()

    async def control() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), None, 80)
        process = host.start(program)
        await process.wait()
        assert cleaned == ["lingerer"]
        assert (process.exception, process.leaked_tasks) == (None, ["lingerer"])
        assert len(process.leaked_sockets) == 1
        server.close()

    world.run(control, limit_s=100)


def test_failed_process_keeps_its_exception() -> None:
    world = World(1)
    host = world.host("host")
    pids: list[int] = []

    async def program() -> None:
        pids.append(os.getpid())
        raise LookupError("no")

    async def control() -> None:
        processes: list[Process] = []
        for _ in range(2):
            processes.append(host.start(program))
            await processes[-1].wait()
        assert [type(each.exception) for each in processes] == [LookupError] * 2
        assert [each.pid for each in processes] == pids
        assert len(set(pids)) == 2

    world.run(control, limit_s=10)
    assert world.errors == []


def test_port_of_a_crashed_host_is_free_again() -> None:
    world = World(1)
    host = world.host("echo")

    async def control() -> None:
        for _ in range(3):
            host.start(echo)
            await anyio.sleep(1)
            reader, writer = await asyncio.open_connection("echo", 80)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            host.crash()
            assert await reader.read() == b""
            writer.close()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("echo", 80)

    world.run(control, limit_s=10)


@pytest.mark.parametrize("end", ["crash", "vanish"])
def test_descriptors_of_a_killed_process_are_free(end: str) -> None:
    world = World(1)

    async def control() -> None:
        server, client = await open_pair(world)
        getattr(server.host, end)()
        getattr(client.host, end)()
        other_server, other_client = await open_pair(world)
        other_client.transport.write(b"hello")
        await anyio.sleep(1)
        assert other_server.received == b"hello"

    world.run(control, limit_s=100)


def test_errors_of_callbacks_are_recorded() -> None:
    world = World(1)
    host = world.host("host")

    async def program() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    async def control() -> None:
        await host.start(program).wait()

    world.run(control, limit_s=10)
    assert len(world.errors) == 1
    assert world.errors[0].startswith("host: Exception in callback")
    assert "ZeroDivisionError" in world.errors[0]


def test_call_soon_runs_in_the_process() -> None:
    world = World(1)
    host = world.host("host")
    names: list[str] = []

    async def control() -> None:
        process = host.start(anyio.sleep_forever)
        process.call_soon(lambda: names.append(socket.gethostname()))
        await anyio.sleep(1)
        host.crash()
        process.call_soon(lambda: names.append("dead"))
        await anyio.sleep(1)

    world.run(control, limit_s=10)
    assert names == ["host"]
