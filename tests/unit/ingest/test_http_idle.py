"""Thousands of idle sockets: bounded memory, and the next client is served."""

import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import psutil
import pytest

from tests.unit.ingest.wire import GET, UPGRADE, answer_ok, echo, status, talk
from worker import descriptors
from worker.ingest.http import Exchange, Limits, serve_http

pytestmark = pytest.mark.anyio

IDLE_KIB_MAX = 24
"""Maximum memory of the process for each idle connection."""

CLIENTS = """
import socket, sys
from worker import descriptors
count, port, sent = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
descriptors.raise_soft_limit(count + 100)
clients = []
for number in range(count):
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(sent)
    if sent.endswith(b"\\r\\n\\r\\n"):
        client.recv(1_000)
    clients.append(client)
print("open", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def _clients(count: int, port: int, sent: bytes) -> AsyncIterator[None]:
    """Open sockets in another process, so that only the server's memory is measured."""
    command = [sys.executable, "-c", CLIENTS, str(count), str(port), sent.hex()]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert await process.stdout.receive() == b"open\n"
        yield
        await process.stdin.aclose()
        await process.wait()


def _memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


async def _handle(exchange: Exchange) -> None:
    await (echo if exchange.request.path == "/raw" else answer_ok)(exchange)


@pytest.mark.parametrize("sent", [b"", UPGRADE[:-2], UPGRADE], ids=["silent", "half", "open"])
@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_idle_sockets_take_bounded_memory(count: int, sent: bytes) -> None:
    limits = Limits(max_connections=count, max_unanswered=count, request_timeout_s=600)
    if descriptors.raise_soft_limit(count + 500) < count + 500:
        pytest.skip(f"fewer than {count + 500} files may be open")
    async with serve_http("127.0.0.1", 0, _handle, Limits(max_connections=1)) as port:
        assert status(await talk(port, GET)) == 200
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.ingest.http.fit_to_system", lambda limits: limits)
        async with serve_http("127.0.0.1", 0, _handle, limits) as port:
            before = _memory()
            async with _clients(count, port, sent):
                assert status(await talk(port, GET.replace(b"/ ", b"/livez "))) == 200
                taken_kib = (_memory() - before) / count / 1024
                print(f"\n{count} sockets: {taken_kib:.1f} KiB each")
            assert taken_kib < IDLE_KIB_MAX
            with anyio.fail_after(120):
                while status(await talk(port, GET)) != 200:
                    await anyio.sleep(0.05)
