"""Commands whose standard streams are closed, full, slow, without a reader, or not UTF-8."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from redis import Redis

from schemas import Keys, encode_event
from schemas.turns import Event, SessionEnded, TurnEnd
from tests.support.collector import collecting
from tests.support.polling import PATIENCE_S
from tests.support.processes import until
from worker.local.emulator.engines.script import ScriptEngine
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is of Linux")

CLOSED = ("<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-")
TEXTS = ("12\u00a0000 €", "می\u200cروم 😀", "\x1b[2J")


def run(command: str, redirections: str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run `turnbus COMMAND REDIRECTIONS` in a shell."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m worker {command} {redirections}', sys.executable],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=os.environ | env,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture
def session_with_turns(bus: Redis, keys: Keys, expected_leftovers: list[str]) -> None:
    """A session whose turns contain non-ASCII letters."""
    expected_leftovers += ["{0}:turns"]
    of = {"session": "s", "run": "1-1", "at": 1.5, "audio_ms": 1, "provider": "p"}
    of |= {"request_id": "r", "connection": 1}
    events: list[Event] = [
        *(
            TurnEnd(**of, seq=seq, turn=seq, transcript=text, reason="model")  # type: ignore[arg-type]
            for seq, text in enumerate(TEXTS)
        ),
        SessionEnded(**of, seq=9, reason="end", turns=3),  # type: ignore[arg-type]
    ]
    for event in events:
        kind = event.__struct_config__.tag
        fields = {"session": "s", "type": str(kind), "event": encode_event(event)}
        bus.xadd(keys.turns("0"), fields)  # type: ignore[arg-type]


WATCH = "watch --session s --from-start --until-ended"


@pytest.mark.usefixtures("session_with_turns")
@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize(
    ("command", "code"), [("schema", 0), ("sessions", 0), (WATCH, 0), ("end absent", 1), ("x", 2)]
)
def test_command_runs_without_standard_streams(command: str, code: int, closed: str) -> None:
    done = run(command, closed)
    assert done.returncode == code
    if ">&-" not in closed:
        whole = run(command)
        assert (done.stdout, done.stderr) == (whole.stdout, whole.stderr)


@pytest.mark.usefixtures("keys")
def test_push_without_stdin_reports_no_audio() -> None:
    done = run("push - --session s", "<&-")
    assert done.returncode == 1
    assert done.stderr == b"turnbus: received no audio; no session was announced\n"


@pytest.mark.usefixtures("keys")
def test_push_reports_unreadable_stdin() -> None:
    done = run("push - --session s", "0>/dev/null")
    assert done.returncode == 2
    assert done.stderr == b"turnbus: standard input: cannot be read: Bad file descriptor\n"


@pytest.mark.usefixtures("session_with_turns")
@pytest.mark.parametrize("command", ["schema", "--help", "run --help", "--version", WATCH, "dead"])
def test_full_disk_behind_stdout_is_one_line(command: str) -> None:
    done = run(command, ">/dev/full")
    assert done.returncode == 1
    assert done.stderr == b"turnbus: standard output: No space left on device\n"


@pytest.mark.usefixtures("session_with_turns")
@pytest.mark.parametrize(("command", "code"), [("schema", 0), ("x", 2), (WATCH, 0), ("end s", 1)])
def test_full_disk_behind_stderr_keeps_exit_code(command: str, code: int) -> None:
    assert run(command, "2>/dev/full").returncode == code


@pytest.mark.usefixtures("session_with_turns")
@pytest.mark.parametrize("command", ["schema", "--help", WATCH])
def test_reader_that_leaves_early_is_not_reported(command: str) -> None:
    done = run(command, "| true")
    assert (done.stdout, done.stderr) == (b"", b"")


def test_nonblocking_stdout_pipe_gets_all_output() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4_096)
    os.set_blocking(writing, False)
    with subprocess.Popen([sys.executable, "-m", "worker", "schema"], stdout=writing) as process:
        os.close(writing)
        until(lambda: _held(reading) == 4_096, process, "the pipe is full")
        with open(reading, "rb") as pipe:  # noqa: PTH123
            assert json.loads(pipe.read())
        assert process.wait(PATIENCE_S) == 0


def _held(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "cp1252:strict"},
    {"PYTHONIOENCODING": "shift_jis"},
    {"PYTHONIOENCODING": "utf-8:strict"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LC_ALL": "C"},
    {"PYTHONUNBUFFERED": "1"},
]


@pytest.mark.usefixtures("session_with_turns")
@pytest.mark.parametrize("env", ENCODINGS, ids=str)
def test_json_is_complete_in_every_encoding(env: dict[str, str]) -> None:
    done = run(f"{WATCH} --json", **env)
    assert (done.returncode, done.stderr) == (0, b"")
    events = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert tuple(each["transcript"] for each in events[:3]) == TEXTS


@pytest.mark.usefixtures("session_with_turns")
@pytest.mark.parametrize("env", ENCODINGS[:1] + ENCODINGS[3:6], ids=str)
@pytest.mark.parametrize("command", [WATCH, "schema", "--help", "stt-server --help", "end wörter"])
def test_command_prints_in_every_encoding(command: str, env: dict[str, str]) -> None:
    done = run(command, **env)
    assert b"Traceback" not in done.stderr
    assert done.returncode == (2 if "ö" in command else 0)


@pytest.mark.usefixtures("session_with_turns")
def test_characters_outside_encoding_are_escaped() -> None:
    lines = run(WATCH, PYTHONIOENCODING="latin-1").stdout.decode("latin-1").splitlines()
    assert [line.partition("turn.end ")[2] for line in lines[:3]] == [
        "0 12\u00a0000 \\u20ac",
        r"1 \u0645\u06cc\u200c\u0631\u0648\u0645 \ud83d\ude00",
        r"2 \ufffd[2J",
    ]


@pytest.mark.usefixtures("keys")
def test_file_name_that_is_not_utf8_is_shown() -> None:
    for command in ("check --json", "check", "sessions"):
        done = run(f"{command} --config", "\"$(printf '\\377')\"")
        assert done.returncode == 2
        assert b"cannot be read: No such file or directory" in done.stdout + done.stderr
        assert b"Traceback" not in done.stderr


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal("asyncio") as portal:
        yield portal


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("closed", [*CLOSED, ">/dev/full", "2>/dev/full"])
def test_worker_without_streams_exports_last_spans(
    closed: str,
    portal: BlockingPortal,
    bus: Redis,
    keys: Keys,
    tmp_path: Path,
    expected_leftovers: list[str],
) -> None:
    expected_leftovers += ["*"]
    serve = TurnsServer.serve(ServerSettings(port=0), ScriptEngine())
    with portal.wrap_async_context_manager(serve) as stt, collecting() as collector:
        env = {
            "TURNBUS_STT_URL": stt.url,
            "TURNBUS_ADMIN_ADDR": "",
            "TURNBUS_WORKER_ID": "w",
            "CARTESIA_API_KEY": "k",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "console",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        }
        fields = {"session": "s", "encoding": "pcm_s16le", "sample_rate": "16000"}
        bus.xadd(keys.sessions, fields)  # type: ignore[arg-type]
        bus.xadd(keys.audio("0", "s"), {"audio": bytes(3_200)})
        command = ["/bin/sh", "-c", f'exec "$0" -m worker run {closed}', sys.executable]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                command, env=os.environ | env, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                until(lambda: stt.connections, process, "it connects")
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE_S) == 0
            finally:
                process.kill()
                process.wait()
        assert "Traceback" not in (tmp_path / "log").read_text()
        names = [span.name for span in collector.spans]
    assert "release stt.sessions" in names
    assert not bus.exists(keys.workers)
