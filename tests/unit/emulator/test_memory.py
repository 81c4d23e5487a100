"""Many short connections, however they end, leave only their bounded report."""

import asyncio
import gc
import logging
import re
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import anyio
import psutil
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.contract.wire import PHONE, serving, until_open
from tests.support.polling import PATIENCE_S
from worker.local.emulator.connection import Connection
from worker.local.emulator.engines.script import ScriptStream, synthesize_silence, synthesize_words
from worker.local.emulator.fault_plan import ConnectionFaults
from worker.local.emulator.settings import ServerSettings
from worker.local.emulator.write_queue import WriteQueue

AUDIO = (
    synthesize_words([1, 2], PHONE) + synthesize_silence(500, PHONE) + synthesize_words([3], PHONE)
)
GOOD = "model=ink-2&encoding=pcm_s16le&sample_rate=8000&cartesia_version=2026-03-01&access_token=x"


async def session(url: str) -> None:
    """Run to the end, unless the server cuts it."""
    async with connect(f"{url}?{GOOD}", proxy=None) as ws:
        await ws.send(AUDIO)
        await ws.send('{"type":"close"}')
        async for _ in ws:
            pass


async def vanishing(url: str) -> None:
    """Cut off by the client inside a turn."""
    async with connect(f"{url}?{GOOD}", proxy=None) as ws:
        await ws.send(AUDIO)
        await ws.recv()
        ws.transport.abort()


async def wrong(url: str) -> None:
    """Refused in-band."""
    async with connect(f"{url}?{GOOD}&model=no", proxy=None) as ws:
        async for _ in ws:
            pass


async def stranger(url: str) -> None:
    """Refused at the upgrade."""
    await connect(f"{url}?{GOOD}&access_token=", proxy=None)


async def silent(url: str) -> None:
    """A TCP connection without a byte."""
    port = re.search(r":(\d+)/", url)
    assert port is not None
    async with await anyio.connect_tcp("127.0.0.1", int(port[1])):
        pass


PARTS = (Connection, WriteQueue, ConnectionFaults, ScriptStream, ServerConnection)
CLIENTS: list[Callable[[str], object]] = [session, vanishing, wrong, stranger, silent]


async def visit(url: str, count: int) -> None:
    """Connect that often, 20 at a time, in every way in turn."""
    room = anyio.Semaphore(20)

    async def one(client: Callable[[str], object]) -> None:
        async with room:
            with suppress(ConnectionClosed, InvalidHandshake):
                await client(url)  # type: ignore[misc]

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(one, CLIENTS[number % len(CLIENTS)])


def alive() -> Counter[type]:
    """Return the number of live objects of the types that one connection consists of."""
    gc.collect()
    # Not isinstance: there are proxies whose object is gone.
    found = Counter(map(type, gc.get_objects()))
    return Counter({kind: count for kind, count in found.items() if issubclass(kind, PARTS)})


async def test_300_short_connections_leave_no_objects(caplog: pytest.LogCaptureFixture) -> None:
    # pytest would keep a captured log record, and with it the frames of its traceback.
    caplog.set_level(logging.CRITICAL, "worker.local.emulator.tcp")
    tasks = asyncio.all_tasks()
    async with serving(ServerSettings(port=0, idle_timeout_s=0.3)) as server:
        server.faults.set("cut@mid-turn,p=0.2", "half-open@flush,p=0.1")
        await visit(server.url, 100)
        await until_open(server, 0)
        tracemalloc.start()
        try:
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
            await visit(server.url, 200)
            with anyio.fail_after(PATIENCE_S):
                while alive():
                    await anyio.sleep(0.05)
            now, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(server.connections) == 180
        assert (now - held) / 120 < 8 * 1024, "bytes kept of each connection"
    assert asyncio.all_tasks() == tasks


@pytest.mark.slow
async def test_10_000_short_connections_use_memory_of_5_000() -> None:
    command = [sys.executable, "-m", "worker", "stt-server", "--engine", "script", "--port", "0"]
    async with await anyio.open_process(command, stderr=None) as process:
        try:
            output = BufferedByteReceiveStream(process.stdout)  # type: ignore[arg-type]
            line = (await output.receive_until(b"\n", 1000)).decode()
            url = re.search(r"ws://\S+", line)
            assert url is not None
            server = psutil.Process(process.pid)
            sizes = []
            for _ in range(4):
                await visit(url[0], 2_500)
                sizes.append(server.memory_info().rss)
            print([f"{size / 2**20:.1f} MiB" for size in sizes])
            # The report is full after 4,096 upgraded connections.
            assert sizes[3] - sizes[1] < 16 * 2**20
            assert server.num_fds() < 50
        finally:
            process.terminate()
            await process.wait()
