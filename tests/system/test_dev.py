"""`turnbus dev` as a process: a call while its parts are broken, and complete cleanup."""

import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect

from schemas.turns import Event, decode_event
from tests.support.dev import Dev, running
from tests.support.gateway import FRAME_MS, frames, speech
from tests.support.harness import PCM16, check_order, words
from tests.support.polling import eventually


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Directory in which the command puts its files."""
    path = tmp_path / "temporary"
    path.mkdir()
    return path


@asynccontextmanager
async def speaking(dev: Dev, session: str, turns: int) -> AsyncIterator[list[Event]]:
    """Speak in a session during the block, and wait for its end; yield the list of its events."""
    events: list[Event] = []
    url = f"ws://{dev.address}/raw?session={session}&events=1"
    async with connect(url, proxy=None) as call, anyio.create_task_group() as tasks:
        assert json.loads(await call.recv())["sessions"] == [session]
        tasks.start_soon(_speak, call, speech(turns, PCM16))
        tasks.start_soon(_collect, call, events)
        await eventually(lambda: len(events) > 1, "the first turn")
        yield events


async def _speak(call: ClientConnection, sound: bytes) -> None:
    for frame in frames(sound, PCM16):
        await call.send(frame)
        await anyio.sleep(FRAME_MS / 1000)
    await call.send('{"end": true}')


async def _collect(call: ClientConnection, events: list[Event]) -> None:
    async for message in call:
        events.append(decode_event(str(message).encode()))  # noqa: PERF401 - the test reads it meanwhile


async def reply(control: ClientConnection, name: str) -> Any:
    """Return the next message with this field."""
    with anyio.fail_after(60):
        while name not in (message := json.loads(await control.recv())):
            pass
    return message


async def until_states(control: ClientConnection, wanted: Sequence[str], provider: str) -> None:
    """Wait until the workers and the provider have these states."""
    with anyio.fail_after(60):
        while True:
            state = await reply(control, "workers")
            found = [worker["state"] for worker in state["workers"]]
            if sorted(found) == sorted(wanted) and state["provider"]["state"] == provider:
                return


async def test_call_survives_each_fault(temporary: Path, tmp_path: Path) -> None:
    async with running(tmp_path, "--port", "0") as dev:
        await dev.started()
        async with connect(f"ws://{dev.address}/control", proxy=None) as control:
            state = await reply(control, "workers")
            assert [worker["id"] for worker in state["workers"]] == ["worker-1", "worker-2"]
            assert state["engine"] == "script"
            async with speaking(dev, "call-1", 9) as events:
                await control.send('{"do": "cut", "session": "call-1"}')
                assert await reply(control, "did") == {"did": "cut"}
                await control.send('{"do": "kill", "session": "call-1"}')
                did = await reply(control, "did")
                assert did["did"] == "kill"
                assert did["worker"] in {"worker-1", "worker-2"}
                await until_states(control, ["killed", "running"], "up")
                await until_states(control, ["running", "running"], "up")
                await control.send('{"do": "outage", "session": "call-1"}')
                assert await reply(control, "did") == {"did": "outage"}
                await control.send('{"do": "outage", "session": "call-1"}')
                assert "away already" in (await reply(control, "error"))["error"]
                await until_states(control, ["running", "running"], "away")
                await until_states(control, ["running", "running"], "up")
        check_order(events)
        assert words(events) == [*range(27)]
        await eventually(
            lambda: dev.output.count("call-1 cartesia turn.end") == 9, "a line for each turn"
        )
        dev.process.send_signal(signal.SIGINT)
        assert await dev.process.wait() == 0
    assert os.listdir(temporary) == []  # noqa: PTH208 - blocking, as any listing


async def test_console_page_is_served_with_policy(temporary: Path, tmp_path: Path) -> None:
    async with running(tmp_path, "--port", "0") as dev:
        await dev.started()
        status, head, body = await dev.page("/")
        assert status == 200
        assert "Content-Security-Policy: default-src 'none'; script-src 'self'" in head
        assert b"turnbus console" in body
        for file in re.findall(rb'(?:href|src)="([^"#]+)"', body):
            status, _, _ = await dev.page(f"/{file.decode()}")
            assert status == 200, file
        dev.process.send_signal(signal.SIGTERM)
        assert await dev.process.wait() == 0


async def test_other_commands_reach_its_parts(temporary: Path, tmp_path: Path) -> None:
    async with running(tmp_path, "--port", "0") as dev:
        await dev.started()
        env = {**os.environ, "TURNBUS_PREFIX": "another", **dev.variables}
        command = [sys.executable, "-m", "worker", "check"]
        checked = await anyio.run_process(command, env=env, check=False)
        assert checked.returncode == 0, checked.stdout.decode() + checked.stderr.decode()


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ('{"do": "kill", "session": "call-0"}', "no worker owns the session now"),
        ('{"do": "kill"}', "no worker owns the session now"),
        ('{"do": "explode"}', 'a message is {"do": "kill" | "cut" | "outage"}'),
        ("nonsense", 'a message is {"do": "kill" | "cut" | "outage"}'),
        (b"\xff", 'a message is {"do": "kill" | "cut" | "outage"}'),
    ],
)
async def test_bad_control_message_gets_an_error(
    message: str | bytes, what: str, temporary: Path, tmp_path: Path
) -> None:
    async with running(tmp_path, "--port", "0") as dev:
        await dev.started()
        async with connect(f"ws://{dev.address}/control", proxy=None) as control:
            await control.send(message)
            assert (await reply(control, "error"))["error"].startswith(what)


async def test_control_refuses_pages_of_other_sites(temporary: Path, tmp_path: Path) -> None:
    async with running(tmp_path, "--port", "0") as dev:
        await dev.started()
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            status = await _upgrade(dev.address, headers)
            assert status == 403


async def _upgrade(address: str, headers: dict[str, str]) -> int:
    lines = {
        "Host": address,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        **headers,
    }
    host, port = address.split(":")
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    async with await anyio.connect_tcp(host, int(port)) as stream:
        await stream.send(f"GET /control HTTP/1.1\r\n{head}\r\n".encode())
        return int((await stream.receive()).split()[1])


async def test_taken_port_is_one_line(temporary: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with running(tmp_path, "--port", str(port)) as dev:
            assert await dev.process.wait() == 2
            last = dev.errors.splitlines()[-1]
            assert last.startswith(f"turnbus: cannot listen on 127.0.0.1:{port}: ")
            assert last.endswith("; choose another address or port")
    assert os.listdir(temporary) == []  # noqa: PTH208 - blocking, as any listing


async def test_stopped_redis_ends_the_command(temporary: Path, tmp_path: Path) -> None:
    async with running(tmp_path, "--port", "0") as dev:
        await dev.started()
        children = psutil.Process(dev.process.pid).children(recursive=True)
        (server,) = [each for each in children if "server" in each.name()]
        server.kill()
        assert await dev.process.wait() == 1
        assert "the embedded Redis stopped" in dev.errors
        assert "Traceback" not in dev.errors
