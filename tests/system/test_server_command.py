"""`turnbus stt-server` as a process."""

import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.unit.emulator.control_client import get
from worker.cli.command import Command
from worker.cli.stt_server import SttServer
from worker.errors import SettingsError

QUERY = "?model=ink-2&encoding=pcm_s16le&sample_rate=8000&cartesia_version=2026-03-01&access_token="


def parsed(*arguments: str) -> Command:
    return SttServer.parser("turnbus stt-server").parse_command(arguments)


@asynccontextmanager
async def started(*arguments: str, lines: int = 1) -> AsyncIterator[tuple[anyio.abc.Process, str]]:
    """The command as a process, and the lines it prints once it listens."""
    command = [sys.executable, "-m", "worker", "stt-server", "--port", "0", *arguments]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdout is not None
        try:
            output = BufferedByteReceiveStream(process.stdout)
            text = ""
            with anyio.fail_after(30):
                for _ in range(lines):
                    text += (await output.receive_until(b"\n", 1000)).decode() + "\n"
            yield process, text
        finally:
            if process.returncode is None:
                process.kill()


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
async def test_server_prints_address_and_exits_cleanly(
    tmp_path: Path, interrupt: signal.Signals
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk_car_one\n\nsk_car_two\n")
    async with started("--engine", "script", "--api-key-file", str(keys)) as (process, line):
        assert f'Cartesia(api_key="one of {keys}"' in line
        url = re.search(r"ws://127\.0\.0\.1:\d+/stt/turns/websocket", line)
        assert url is not None
        base = url[0].replace("ws:", "http:").removesuffix("/stt/turns/websocket")
        assert f'base_url="{base}"' in line
        with pytest.raises(InvalidStatus):
            await connect(f"{url[0]}{QUERY}sk_car_three", proxy=None)
        async with connect(f"{url[0]}{QUERY}sk_car_two", proxy=None) as ws:
            assert "connected" in str(await ws.recv())
            process.send_signal(interrupt)
            await ws.wait_closed()
            assert ws.close_code == 1001
        assert await process.wait() == 0


async def test_server_options_set_faults_and_control() -> None:
    options = ["--control-port", "0", "--fault", "close=1012,count=1", "--fault", "duplicate"]
    async with started("--engine", "script", *options, lines=2) as (_, text):
        url = re.search(r"ws://\S+", text)
        control = re.search(r"control: http://127\.0\.0\.1:(\d+)/\n", text)
        assert url is not None
        assert control is not None
        async with connect(f"{url[0]}{QUERY}any", proxy=None) as ws:
            await ws.wait_closed()
            assert ws.close_code == 1012
        _, state = await get(int(control[1]), "/")
        assert [(each["fault"], each["connections"]) for each in state["faults"]] == [
            ("close=1012,count=1", 1),
            ("duplicate", 0),
        ]
        await get(int(control[1]), "/outage/start")
        with pytest.raises(ConnectionRefusedError):
            await connect(f"{url[0]}{QUERY}any", proxy=None)
        await get(int(control[1]), "/outage/stop")
        async with connect(f"{url[0]}{QUERY}any", proxy=None) as ws:
            assert "connected" in str(await ws.recv())


async def test_server_options_set_undocumented_behaviour() -> None:
    options = ["--model", "ink-2", "--model", "ink-preview", "--turn-id", "--config-ack"]
    options += ["--older-defaults", "--no-leading-space", "--refuse-in-band", "--text-resets-idle"]
    options += ["--max-session-s", "60", "--max-message-bytes", "100000", "--ping-s", "30"]
    query = QUERY.replace("ink-2", "ink-preview")
    async with started("--engine", "script", *options) as (_, line):
        url = re.search(r"ws://\S+", line)
        assert url is not None
        async with connect(f"{url[0]}{query}any", proxy=None) as ws:
            await ws.send('{"type":"config"}')
            assert "connected" in str(await ws.recv())
            assert '"eager_end_threshold":0.4,"end_threshold":0.2' in str(await ws.recv())
        async with connect(f"{url[0]}{query}", proxy=None) as ws:
            assert '"status_code":401' in str(await ws.recv())


async def test_server_options_select_flux() -> None:
    options = ["--provider", "flux", "--no-word-times", "--no-trigger", "--no-force-end-turn"]
    options += ["--any-rate", "--throttle", "1000", "--close-code", "1000", "--model", "flux-x"]
    query = "?model=flux-x&encoding=mulaw&sample_rate=11025"
    async with started("--engine", "script", *options) as (_, line):
        url = re.search(r"Flux server \(script\): (ws://\S+/v2/listen)", line)
        assert url is not None
        headers = {"Authorization": "Token any"}
        async with connect(f"{url[1]}{query}", additional_headers=headers, proxy=None) as ws:
            assert '"Connected"' in str(await ws.recv())
            await ws.send('{"type":"CloseStream"}')
            await ws.wait_closed()
            assert ws.close_code == 1000


def test_server_reports_unusable_options(tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.touch()
    for arguments, fault in [
        (["--latency-ms", "5"], "--latency-ms requires --engine script"),
        (["--text-style", "tabs"], "--text-style requires --engine script"),
        (["--engine", "script", "--api-key-file", str(empty)], "contains no key"),
        (["--engine", "script", "--api-key-file", str(tmp_path / "none")], "No such file"),
        (["--fault", "cut@lunch"], "'lunch' is not a valid WHEN"),
        (["--any-rate"], "--any-rate requires --provider flux"),
        (["--provider", "flux", "--turn-id"], "--turn-id requires --provider cartesia"),
        (["--provider", "flux", "--close-code", "1006"], "1006 cannot be in a close frame"),
    ]:
        command = parsed(*arguments)
        with pytest.raises(SettingsError, match=fault):
            command.run()


@pytest.mark.parametrize(
    "wrong",
    [["--port", "65536"], ["--idle-timeout-s", "0"], ["--engine", "x"], ["--max-connections", "0"]],
)
def test_server_bad_usage_exits_with_2(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parsed(*wrong)
    assert left.value.code == 2
    assert wrong[0] in capsys.readouterr().err
