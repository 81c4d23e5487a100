"""Any environment and any options: a documented exit code, one line, never a traceback."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.polling import PATIENCE_S
from tests.unit.test_otel_variables import VALUES as OTEL_VALUES
from tests.unit.test_otel_variables import VARIABLES as OTEL_VARIABLES
from worker.cli.main import main
from worker.settings import Settings

NAMES = [f"TURNBUS_{name.upper()}" for name in Settings.__struct_fields__]
OPTIONS = {
    "run": ["--config"],
    "demo": ["--sessions", "--no-kill", "--traces", "--json"],
    "push": [
        *("--session", "--encoding", "--sample-rate", "--chunk-ms", "--speed", "--lane"),
        *("--out", "--metadata", "--json", "--config"),
    ],
    "watch": ["--session", "--lane", "--from-start", "--until-ended", "--json", "--config"],
    "sessions": ["--json", "--config"],
    "drain": ["--json", "--config"],
    "dead": ["--requeue", "--json", "--config"],
    "end": ["--json", "--config"],
    "check": ["--json", "--config"],
    "stt-server": [
        *("--host", "--port", "--engine", "--api-key-file", "--max-connections", "--fault"),
        *("--idle-timeout-s", "--latency-ms", "--seed", "--control-port", "--model"),
        *("--older-defaults", "--refuse-in-band", "--turn-id", "--config-ack", "--ping-s"),
        *("--no-leading-space", "--text-resets-idle", "--max-session-s", "--max-message-bytes"),
    ],
    "bench": [
        *("--sessions", "--chunk-ms", "--seconds", "--warmup", "--churn", "--encoding"),
        *("--sample-rate", "--traced", "--repeat", "--json"),
    ],
    "bench recovery": ["--kill-sessions", "--drain-sessions", "--trials", "--repeat", "--json"],
    "schema": [],
}
ARGUMENTS = {"push": ["-"], "drain": ["w"], "end": ["s"]}
WORDS = [
    *"""
    0 1 -1 5 5.0 1e3 1_000 5s 0x10 nan inf 1e300 true True YES on false INFO json
    TEXT debug redis://127.0.0.1:1/0 rediss://127.0.0.1:1 unix:///nonexistent
    unix:/// redis+cluster://127.0.0.1:1 redis+sentinel://127.0.0.1:1/m
    redis://h:99999 redis://::1:1 redis://[::1 redis://a..b redis://:p@ss/w@h
    ws://127.0.0.1:1/stt wss://h:0/ https://h ws://[::1]:1/x 127.0.0.1:0 [::1]:0
    256.0.0.1:80 a..b:80 127.0.0.1:99999 ::1 localhost /nonexistent / /dev/null s
    call-1 0 lane session pcm_s16le PCM_MULAW mp3 speech script {} [] 1-1 0-0
    99999999999999999999-1 kill cut@mid-turn http=503,count=3 http=999 pace=nan
    latency=1e300s error=x , sk_car_hunter2 2026-03-01 --api-key --conf -- - -h
    --help --x=y
    """.split(),
    *("", " ", " 5 ", "\udcff", "ü", "日本", "a\nb", "\x1b[2J", "wss://127.0.0.1:1/ü"),
    *("9" * 400, "9" * 5_000, "9" * 20 + "-1", f"redis://{'a' * 80}"),
    *('{"a": 1}', "[" * 5_000, '{"a":' * 5_000),
]
odd = st.sampled_from(WORDS)
command_lines = st.sampled_from(sorted(OPTIONS)).flatmap(
    lambda command: st.tuples(
        st.just(command),
        st.lists(
            st.one_of(
                st.tuples(st.sampled_from(OPTIONS[command] or ["--write"])),
                st.tuples(st.sampled_from(OPTIONS[command] or ["--x"]), odd),
                st.tuples(odd),
            ),
            max_size=4,
        ).map(lambda given: [word for words in given for word in words]),
    )
)
variables = st.dictionaries(st.sampled_from([*NAMES, "CARTESIA_API_KEY"]), odd, max_size=3)
otel_variables = st.dictionaries(st.sampled_from(OTEL_VARIABLES), OTEL_VALUES, max_size=1)


def environment_of(given: dict[str, str]) -> dict[str, str]:
    """Return an environment in which nothing answers, overlaid with `given` values."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TURNBUS_", "OTEL_", "CARTESIA_"))
    }
    env |= {
        "TURNBUS_REDIS_URL": "redis://127.0.0.1:1/0",
        "TURNBUS_STT_URL": "ws://127.0.0.1:1/stt",
        "TURNBUS_ADMIN_ADDR": "",
        "CARTESIA_API_KEY": "k",
    }
    return env | given


@pytest.fixture
def skip_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make commands that serve or measure return where they would begin to."""

    def skipped(main: object) -> Any:
        raise SystemExit(0)

    for module in ("run", "demo", "bench", "recovery", "stt_server"):
        monkeypatch.setattr(f"worker.cli.{module}.run_async", skipped)
    monkeypatch.setattr("worker.cli.stt_server._engine", lambda _: None)
    monkeypatch.setattr("worker.telemetry.configure", lambda *_: None)
    monkeypatch.setattr("worker.telemetry.logs.set_up", lambda _: None)
    monkeypatch.setattr("worker.cli.check._COLLECTOR_TIMEOUT_S", 0.1)


@contextmanager
def environment(given: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment_of(given))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def judge(command: str, words: list[str], given: dict[str, str]) -> None:
    """Run a command line in this process; check that its end is documented."""
    if "schema" in command and "--write" in words:
        return
    arguments = [*command.split(), *ARGUMENTS.get(command, []), *words]
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with environment(given), redirect_stdout(out), redirect_stderr(err):
        try:
            code: object = main(arguments)
        except SystemExit as end:
            code = end.code
    assert code in (0, 1, 2)
    assert "Traceback" not in err.getvalue()
    assert "hunter2" not in err.getvalue()
    if code == 1 and command != "check":
        assert len(err.getvalue().splitlines()) == 1
    if code == 2 and command != "check":
        assert err.getvalue().startswith(("turnbus: ", "usage: "))


FUZZ = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.usefixtures("skip_work")
@settings(FUZZ, max_examples=300)
@given(command_lines, variables)
def test_any_command_line_ends_as_documented(
    line: tuple[str, list[str]], given: dict[str, str]
) -> None:
    judge(*line, given)


@pytest.mark.slow
@pytest.mark.usefixtures("skip_work")
@settings(FUZZ, max_examples=10_000)
@given(command_lines, variables, otel_variables)
def test_many_command_lines_end_as_documented(
    line: tuple[str, list[str]], given: dict[str, str], of_otel: dict[str, str]
) -> None:
    judge(*line, given | of_otel)


def run(arguments: list[str], given: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment_of(given),
        timeout=PATIENCE_S,
        check=False,
    )


# `run` would wait for Redis, and the others take long. Here they run for real or not at all.
IN_EARNEST = ("push", "watch", "sessions", "drain", "dead", "end", "check", "schema")


@pytest.mark.slow
@settings(FUZZ, max_examples=300)
@given(command_lines.filter(lambda line: line[0] in IN_EARNEST), variables, otel_variables)
def test_one_process_ends_as_documented(
    line: tuple[str, list[str]], given: dict[str, str], of_otel: dict[str, str]
) -> None:
    command, words = line
    if "--write" in words or any("\n" in word or len(word) > 10_000 for word in words):
        return
    done = run([*command.split(), *ARGUMENTS.get(command, []), *words], given | of_otel)
    assert done.returncode in (0, 1, 2)
    assert b"Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "given", "code"),
    [
        (["sessions", "--config", "\udcff"], {}, 2),
        (["run", "--api-key", "sk_car_hunter2"], {}, 2),
        (["push", "-", "--session", "s"], {"TURNBUS_REDIS_URL": "redis://:\udcff@127.0.0.1:1"}, 2),
        (["check"], {"CARTESIA_API_KEY": "\udcff"}, 2),
        (["end", "s"], {"OTEL_ATTRIBUTE_COUNT_LIMIT": "x"}, 1),
        (["stt-server", "--host", "a..b"], {}, 2),
        (["stt-server", "--host", "nonexistent.invalid", "--engine", "script"], {}, 1),
    ],
    ids=str,
)
def test_any_process_ends_as_documented(
    arguments: list[str], given: dict[str, str], code: int
) -> None:
    done = run(arguments, given)
    assert done.returncode == code
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "stt-server --api-key k",
        "run --conf x.toml",
        "push - --sess s",
        "bench --sess 3",
        "bench recovery --rep 3",
        "--vers",
        "watch --until",
    ],
)
def test_abbreviated_options_are_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_key_given_as_option_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--api-key", "hunter2"], ["--stt-api-key=hunter2"], ["sk_car_hunter2"]):
        with pytest.raises(SystemExit):
            main(["run", *words])
        errors = capsys.readouterr().err
        assert "hunter2" not in errors
        if "-key" in words[0]:
            assert "a key is not an option; put it into CARTESIA_API_KEY" in errors


def test_option_placeholders_are_capitals(capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--encoding", "PCM_MULAW"), ("--out", "Session"), ("--speed", " 1e1 ")):
        # The command looks for the file after it has read the options.
        assert main(["push", "/nonexistent.wav", "--session", "s", option, value]) == 2
        assert "/nonexistent.wav: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("extra", ["", "--json"])
def test_any_settings_file_ends_as_documented(
    tmp_path: Path, extra: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.toml"
    for content in (
        b"\xff\xfe",
        b"\x00",
        b"a",
        b"a = " + b"[" * 100_000,
        b'prefix = "\\u0000"',
        b'stt_api_key_file = "a\\u0000b"',
        b"prefix = 1979-05-27",
        b"max_sessions = " + b"9" * 5_000,
        b"lease_ms = nan",
        b"[turnbus]\nprefix = 'a'",
        b'log_level = ["info"]',
    ):
        file.write_bytes(content)
        assert main(["check", "--config", str(file), *extra.split()]) == 2
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        assert str(file) in shown.out
    assert main(["check", "--config", str(tmp_path), *extra.split()]) == 2
    assert "cannot be read: Is a directory" in capsys.readouterr().out
