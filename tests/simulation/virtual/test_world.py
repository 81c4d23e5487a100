"""The world: unmodified libraries run on it, runs repeat, and patches end with the run."""

import asyncio
import os
import random
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

import anyio
import pytest
from anyio._backends._asyncio import AsyncIOBackend, CancelScope
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import WebSocketException

from tests.simulation.virtual.log import EventLog
from tests.simulation.virtual.loop import Deadlock, TimeLimit
from tests.simulation.virtual.resp import RespServer
from tests.simulation.virtual.world import World, assert_repeats

SEEDS = range(5)

PATCHED = (
    (time, "time time_ns monotonic monotonic_ns perf_counter perf_counter_ns sleep"),
    (os, "urandom getpid"),
    (random, "_urandom"),
    (socket, "socket gethostname getaddrinfo"),
    (AsyncIOBackend, "run_sync_in_worker_thread"),
    (CancelScope, "__hash__"),
)


async def _echo(websocket: ServerConnection) -> None:
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
        async with connect("ws://echo", proxy=None) as websocket:
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
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


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
