"""The world: unmodified libraries run on it, runs repeat, and patches end with the run."""

import ast
import asyncio
import gc
import os
import random
import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import anyio
import pytest
import trustme
from anyio._backends._asyncio import AsyncIOBackend, CancelScope
from anyio.abc import SocketStream
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, WebSocketException

import worker
from tests.simulation.virtual.log import EventLog
from tests.simulation.virtual.resp import RespServer
from tests.simulation.virtual.scheduler import Deadlock, TimeLimit
from tests.simulation.virtual.world import World, assert_repeats

SEEDS = range(4)

PATCHED = (
    (time, "time time_ns monotonic monotonic_ns perf_counter perf_counter_ns sleep"),
    (os, "urandom getpid"),
    (random, "_urandom"),
    (socket, "socket gethostname getaddrinfo"),
    (AsyncIOBackend, "run_sync_in_worker_thread"),
    (CancelScope, "__hash__"),
)


async def _echo(websocket: ServerConnection) -> None:
    with suppress(ConnectionClosed):
        async for message in websocket:
            await websocket.send(message)


async def _serve_echo() -> None:
    async with serve(_echo, "0.0.0.0", 80):
        await asyncio.Future()


async def _count(redis: Redis) -> None:
    while True:
        with suppress(RedisConnectionError):
            await redis.incr(f"count-{random.randrange(4)}")
        await asyncio.sleep(random.random())


async def _talk() -> None:
    with suppress(OSError, WebSocketException):
        async with connect("ws://echo", proxy=None, compression=None) as websocket:
            for _ in range(50):
                message = secrets.token_bytes(random.randrange(3_000))
                await websocket.send(message)
                assert await websocket.recv() == message


async def _client() -> None:
    redis = Redis(host="redis")
    while True:
        with anyio.move_on_after(2 * random.random()):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(_count, redis)
                await _talk()
        await asyncio.sleep(random.random())


def mixed_run(seed: int) -> EventLog:
    """Run clients of Redis and of a WebSocket under crashes, pauses, cuts and partitions."""
    world = World(seed)
    redis, echo = world.host("redis"), world.host("echo")
    clients = [world.host(f"client-{number}") for number in range(3)]

    async def program() -> None:
        redis.start(RespServer().serve)
        echo.start(_serve_echo)
        for host in clients:
            host.start(_client)
        for _ in range(20):
            await anyio.sleep(world.rng.random())
            host = world.rng.choice(clients)
            match world.rng.randrange(4):
                case 0:
                    host.crash_after(world.rng.randrange(1, 50))
                    await anyio.sleep(1)
                    host.crash()
                    host.start(_client)
                case 1:
                    host.pause()
                    await anyio.sleep(world.rng.random())
                    host.resume()
                case 2:
                    world.network.cut(host, echo, after_bytes=world.rng.randrange(5_000))
                case _:
                    world.network.partition(host, redis)
                    await anyio.sleep(world.rng.random())
                    world.network.heal(host, redis)

    world.run(program, limit_s=200)
    assert world.errors == []
    return world.log


@pytest.mark.parametrize("seed", SEEDS)
def test_runs_of_one_seed_have_equal_logs(seed: int) -> None:
    assert_repeats(lambda: mixed_run(seed))


def test_runs_of_two_seeds_differ() -> None:
    assert mixed_run(1).digest != mixed_run(2).digest


def test_runs_in_two_processes_have_equal_logs() -> None:
    code = f"from {__name__} import mixed_run; print(mixed_run(3).digest)"
    digests = {_output(code, "0") for _ in range(2)}
    assert len(digests) == 1


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name


def _run_in_order_of_a_set(hashed_by_seed: Sequence[type], seed: int = 1) -> EventLog:
    world = World(seed, hashed_by_seed=hashed_by_seed)

    async def program() -> None:
        for each in {_Named(str(number)) for number in range(1_000)}:
            world.log.note("control", each.name)

    world.run(program, limit_s=1)
    return world.log


def test_run_leaves_nothing_in_memory() -> None:
    def count() -> int:
        gc.collect()
        return sum(isinstance(each, (World, asyncio.Task)) for each in gc.get_objects())

    before = count()
    log = mixed_run(2)
    assert count() == before
    assert len(log.lines) > 50


def test_order_by_address_is_found() -> None:
    with pytest.raises(AssertionError, match="the runs differ at"):
        assert_repeats(lambda: _run_in_order_of_a_set([]))


def test_classes_hash_by_the_seed_on_request() -> None:
    assert_repeats(lambda: _run_in_order_of_a_set([_Named]))
    one, other = (_run_in_order_of_a_set([_Named], seed).lines for seed in (1, 2))
    assert one != other


def test_fixed_hashes_are_those_of_every_process() -> None:
    code = f"from {World.__module__} import fix_hashes; fix_hashes(); print(hash('text'))"
    hashes = {_output(code, "random") for _ in range(2)}
    assert len(hashes) == 1


def _output(code: str, hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_redis_client_works() -> None:
    world = World(1)
    host = world.host("redis")
    value = "x" * 1_000_000

    async def program() -> None:
        host.start(RespServer().serve)
        await anyio.sleep(1)
        async with Redis(host="redis") as redis:
            await redis.set("key", value)
            assert await redis.get("key") == value.encode()
            async with redis.pipeline(transaction=False) as pipeline:
                for _ in range(100):
                    pipeline.incr("count")
                assert await pipeline.execute() == list(range(1, 101))

    world.run(program, limit_s=60)


@pytest.mark.parametrize("seed", SEEDS)
def test_websocket_echoes_under_cuts(seed: int) -> None:
    world = World(seed)
    host = world.host("echo")
    echoed = 0

    async def program() -> None:
        nonlocal echoed
        world.network.set_latency(world.control, host, 0, 0.2)
        host.start(_serve_echo)
        await anyio.sleep(1)
        for after_bytes in range(0, 3_000, 300):
            async with connect("ws://echo", proxy=None) as websocket:
                world.network.cut(world.control, host, after_bytes=after_bytes)
                with suppress(OSError, WebSocketException):
                    for size in range(100):
                        await websocket.send(bytes(size))
                        assert await websocket.recv() == bytes(size)
                        echoed += 1

    world.run(program, limit_s=1_000)
    assert echoed > 50


def test_anyio_sockets_work() -> None:
    world = World(1)
    host = world.host("echo")

    async def answer(stream: SocketStream) -> None:
        async with stream:
            await stream.send(await _receive(stream, 5))

    async def serve_streams() -> None:
        async with await anyio.create_tcp_listener(local_host="0.0.0.0", local_port=80) as listener:
            await listener.serve(answer)

    async def program() -> None:
        host.start(serve_streams)
        await anyio.sleep(1)
        async with await anyio.connect_tcp("echo", 80) as stream:
            await stream.send(b"hello")
            assert await _receive(stream, 5) == b"hello"
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()

    world.run(program, limit_s=10)


async def _receive(stream: SocketStream, size: int) -> bytes:
    received = b""
    while len(received) < size:
        received += await stream.receive()
    return received


def test_tls_works() -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("echo").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    world = World(1)
    host = world.host("echo")

    async def serve_tls() -> None:
        async with serve(_echo, "0.0.0.0", 443, ssl=server_context):
            await asyncio.Future()

    async def program() -> None:
        host.start(serve_tls)
        await anyio.sleep(1)
        async with connect("wss://echo", ssl=client_context, proxy=None) as websocket:
            await websocket.send("hello" * 10_000)
            assert await websocket.recv() == "hello" * 10_000

    world.run(program, limit_s=100)


def test_run_raises_what_the_program_raises() -> None:
    async def program() -> None:
        raise LookupError("no")

    with pytest.raises(LookupError):
        World(1).run(program, limit_s=1)


def test_run_raises_deadlock_if_everything_waits() -> None:
    with pytest.raises(Deadlock):
        World(1).run(anyio.sleep_forever, limit_s=1)


def test_run_raises_time_limit() -> None:
    world = World(1)
    with pytest.raises(TimeLimit):
        world.run(lambda: anyio.sleep(5), limit_s=1)
    assert world.now() <= 1


def _values() -> list[object]:
    return [vars(owner).get(name) for owner, names in PATCHED for name in names.split()]


def _failing() -> None:
    async def program() -> None:
        assert socket.gethostname() == "control"
        raise LookupError

    with pytest.raises(LookupError):
        World(1).run(program, limit_s=1)


def _deadlocked() -> None:
    with pytest.raises(Deadlock):
        World(1).run(asyncio.Event().wait, limit_s=1)


@pytest.mark.parametrize("run", [_failing, _deadlocked])
def test_patches_end_with_a_failed_run(run: Callable[[], None]) -> None:
    random.seed(7)
    state = random.getstate()
    before = _values()
    run()
    assert _values() == before
    assert random.getstate() == state


def test_randomness_repeats_and_time_is_virtual() -> None:
    def drawn(seed: int) -> list[object]:
        values: list[object] = []

        async def program() -> None:
            await asyncio.sleep(0.5)
            values.extend([random.random(), secrets.token_hex(4), uuid4(), os.urandom(3)])
            values.extend([time.time(), time.monotonic(), os.getpid(), socket.gethostname()])

        World(seed).run(program, limit_s=1)
        return values

    assert drawn(1) == drawn(1)
    assert drawn(1)[:4] != drawn(2)[:4]


def _real_clocks(source: str) -> list[int]:
    """Return the lines that keep a clock of `time` which a later patch does not replace."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            lines.append(node.lineno)
        elif isinstance(node, ast.arguments):
            defaults = [each for each in (*node.defaults, *node.kw_defaults) if each is not None]
            lines += [each.lineno for each in defaults if ast.unparse(each).startswith("time.")]
    return lines


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("from time import monotonic", [1]),
        ("def f(now=time.monotonic): pass", [1]),
        ("def f(*, a, now=time.time): pass", [1]),
        ("import time\ndef f(now=None): return (now or time.monotonic)()", []),
    ],
)
def test_clock_that_is_kept_at_import_is_found(source: str, lines: list[int]) -> None:
    assert _real_clocks(source) == lines


def test_worker_reads_only_clocks_that_the_world_patches() -> None:
    kept = {
        path.name: lines
        for path in Path(worker.__file__).parent.rglob("*.py")
        if (lines := _real_clocks(path.read_text()))
    }
    assert kept == {}
