"""The command line as users meet it: processes, exit codes, one line per error."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worker.cli.main import _COMMANDS, main

HEAVY = ("numpy", "onnxruntime", "rich", "redis", "websockets", "opentelemetry")


def turnbus(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **environment},
        timeout=60,
        check=False,
    )


def test_help_lists_commands_without_importing_them() -> None:
    script = (
        "import sys\n"
        "from worker.cli.main import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as end:\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    print('code', end.code, 'loaded', loaded)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    for command in _COMMANDS:
        assert re.search(rf"^    {command}\s", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("code 0 loaded []\n")


@pytest.mark.parametrize("command", _COMMANDS)
def test_command_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: turnbus {command}" in shown
    assert f"turnbus {command}" in shown.partition("\nexamples:\n  ")[2]


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("turnbus 0.")


@pytest.mark.parametrize(
    "arguments", [[], ["no-such-command"], ["schema", "--no-such-option"], ["push", "x.wav"]]
)
def test_bad_usage_exits_with_2(arguments: list[str]) -> None:
    done = turnbus(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: turnbus")


def test_bad_settings_exit_with_2_and_one_line_each() -> None:
    done = turnbus("watch", TURNBUS_LEASE_MS="x", TURNBUS_REDIS="y")
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("turnbus: TURNBUS_REDIS: no such setting")
    assert second.startswith("turnbus: TURNBUS_LEASE_MS: must be")


def test_failure_exits_with_1_and_one_line() -> None:
    done = turnbus("watch", TURNBUS_REDIS_URL="redis://:hunter2@127.0.0.1:1/0")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("turnbus: Redis at redis://***@127.0.0.1:1/0: ")


def test_closed_output_pipe_prints_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "worker", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


_WITHOUT_EXTRAS = """
import sys

sys.modules |= dict.fromkeys(
    ["av", "numpy", "psutil", "rich", "opentelemetry.exporter.otlp.proto.http"]
)
from worker.cli.main import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "variables", "extra"),
    [
        ("stt-server", {}, "local"),
        ("stt-server --engine script", {}, "local"),
        ("demo", {}, "local"),
        ("bench", {}, "local"),
        ("bench recovery", {}, "local"),
        ("push call.wav --session s", {}, "local"),
        ("run", {"CARTESIA_API_KEY": "k", "OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ("run", {"CARTESIA_API_KEY": "k", "OTEL_METRICS_EXPORTER": "otlp"}, "otlp"),
    ],
)
def test_missing_extra_error_names_install_command(
    arguments: str, variables: dict[str, str], extra: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_EXTRAS, *arguments.split()],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **variables},
        timeout=60,
        check=False,
    )
    assert done.returncode == (1 if extra == "local" else 2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("turnbus: ")
    assert f"; run: pip install 'turnbus[{extra}]'" in line


_INTERRUPTED_AT = """
import signal
import sys


class Finder:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)


sys.meta_path.insert(0, Finder())
from worker.cli.main import main

sys.exit(main(["watch"]))
"""


@pytest.mark.parametrize(
    "module", ["worker.errors", "argparse", "anyio", "redis.asyncio", "worker.cli.watch"]
)
def test_ctrl_c_during_import_prints_no_traceback(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_AT.format(module=module)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_entry_point_imports_nothing_early() -> None:
    code = (
        "import sys; before = {*sys.modules}; import worker.cli.main; "
        "print({*sys.modules} - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ast.literal_eval(done.stdout) == {"worker", "worker.cli", "worker.cli.main"}


def in_namespaces(*options: str) -> list[str]:
    """Return the prefix that runs a shell command in its own namespaces; skip if unavailable."""
    enter = ["unshare", *options]
    if shutil.which("unshare") is None or subprocess.run([*enter, "true"]).returncode:
        pytest.skip("namespaces are not allowed here")
    return [*enter, "/bin/sh", "-c"]


HOST_ENV = {"PATH": os.environ["PATH"], "CARTESIA_API_KEY": "k", "TURNBUS_ADMIN_ADDR": ""}


@pytest.mark.parametrize(("command", "code"), [("run", 2), ("check", 2), ("sessions", 1)])
def test_invalid_host_name_as_worker_id_is_refused(command: str, code: int) -> None:
    script = f'echo "office 1" >/proc/sys/kernel/hostname && exec "$0" -m worker {command}'
    done = subprocess.run(
        [*in_namespaces("--uts"), script, sys.executable],
        capture_output=True,
        text=True,
        env=HOST_ENV | {"TURNBUS_REDIS_URL": "redis://127.0.0.1:1"},
        timeout=60,
    )
    assert done.returncode == code
    (line,) = (done.stdout + done.stderr).splitlines()
    fault = "TURNBUS_WORKER_ID: not set, and host name 'office 1' is not a valid worker id; set "
    assert (fault in line) == (code == 2)


# Every directory that Python would use for temporary files is read-only, or one is full.
_READ_ONLY = "for d in /tmp /var/tmp /; do mount --bind $d $d && mount -o remount,ro,bind $d; done"
_FULL = "mount -t tmpfs -o size=4k none /var/tmp && export TMPDIR=/var/tmp"


@pytest.mark.parametrize("command", ["demo --sessions 1", "bench"])
def test_missing_temporary_directory_is_one_line(command: str) -> None:
    pytest.importorskip("rich")
    script = f'mount --make-rprivate / && {_READ_ONLY} && cd /proc && exec "$0" -m worker {command}'
    done = subprocess.run(
        [*in_namespaces("--mount"), script, sys.executable],
        capture_output=True,
        text=True,
        env=HOST_ENV | {"PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=60,
    )
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith("turnbus: no temporary directory is writable")
    assert "Traceback" not in done.stderr


def test_full_temporary_disk_is_one_line() -> None:
    pytest.importorskip("rich")
    script = f'mount --make-rprivate / && {_FULL} && exec "$0" -m worker demo --sessions 1'
    done = subprocess.run(
        [*in_namespaces("--mount"), script, sys.executable],
        capture_output=True,
        text=True,
        env=HOST_ENV,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("is full; make room, or set TMPDIR to another directory")


def test_pid_1_can_be_stopped_while_it_starts() -> None:
    enter = ["unshare", "--pid", "--fork"]
    if shutil.which("unshare") is None or subprocess.run([*enter, "true"]).returncode:
        pytest.skip("process namespaces are not allowed here")
    program = (
        "import os, signal\n"
        "from worker.cli import main\n"
        "main._run = lambda *_: os.kill(1, signal.SIGTERM) or 0\n"
        "raise SystemExit(main.main(['run']))\n"
    )
    done = subprocess.run(
        [*enter, sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")
