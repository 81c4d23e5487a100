"""The demo as a process: real speech, real workers, and complete cleanup."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from tests.support.collector import collecting
from tests.support.processes import left_of
from tests.support.sounds import pcm, samples_of, wav
from worker.cli.main import main
from worker.local.clips import CLIPS
from worker.local.demo import run
from worker.local.demo.sessions import DemoSession
from worker.local.demo.state import DemoState
from worker.local.demo.summary import Summary, summarize

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Directory in which the demo puts its files."""
    path = tmp_path / "temporary"
    path.mkdir()
    return path


@pytest.fixture
def demo(temporary: Path) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A user's real settings must not reach the demo.
            env={
                **os.environ,
                "TMPDIR": str(temporary),
                "TURNBUS_REDIS_URL": "redis://nowhere",
                **variables,
            },
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with process:
            process.kill()


@pytest.fixture
def short_clip(tmp_path: Path) -> Path:
    """The first three seconds of a clip."""
    (clip,) = (clip for clip in CLIPS if clip.path.stem == "commands")
    path = tmp_path / "short.wav"
    path.write_bytes(wav(pcm(samples_of(clip.path, 16_000)[:48_000]), 16_000))
    return path


def offspring(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return children


def assert_gone(processes: list[psutil.Process], temporary: Path) -> None:
    assert processes
    assert left_of(processes) == []
    assert list(temporary.iterdir()) == []


def test_demo_survives_kill_of_worker(demo: Start, temporary: Path) -> None:
    """The whole demo with two sessions: 20 s. The user's collector receives spans and metrics."""
    with collecting() as collector:
        process = demo(
            *("--sessions", "2", "--json"),
            OTEL_TRACES_EXPORTER="otlp",
            OTEL_METRICS_EXPORTER="otlp",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        running = offspring(process)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    *events, summary = [json.loads(line) for line in [first, *output.splitlines()]]

    assert summary["type"] == "demo.summary"
    assert summary["total"]["word_error_rate"] < 0.15
    assert summary["total"]["turns"] >= 4
    assert summary["total"]["missing_ms"] == 0
    assert summary["total"]["end_delay_median_s"] > 0
    assert {one["encoding"] for one in summary["sessions"]} == {"pcm_s16le", "pcm_mulaw"}
    assert summary["kill"]["sessions"]
    moved = [one for one in summary["sessions"] if one["session"] in summary["kill"]["sessions"]]
    assert all(len(one["workers"]) == 2 for one in moved)

    for one in summary["sessions"]:
        own = [event for event in events if event["session"] == one["session"]]
        assert [event["seq"] for event in own] == list(range(1, len(own) + 1))
        assert (own[0]["type"], own[-1]["type"]) == ("session.started", "session.ended")
        assert max(event["connection"] for event in own) == one["connections"]
        transcripts = [event["transcript"].strip() for event in own if event["type"] == "turn.end"]
        assert " ".join(transcripts) == one["transcript"]
    assert_gone(running, temporary)

    sent = {span.span_id for span in collector.spans if span.name == "send stt.sessions"}
    assert len(sent) == 2
    turns = [span for span in collector.spans if span.name == "process stt.audio"]
    assert {span.parent_span_id for span in turns} == sent
    assert {metric.name for metric in collector.metrics} >= {"turnbus.sessions"}


def test_demo_fails_over_inside_turn(demo: Start, temporary: Path) -> None:
    """The first provider is killed: its turns move to the second, and a new session to the first.

    Two sessions, 16 s.
    """
    process = demo("--fail-over", "--sessions", "2", "--json", "--no-kill")
    assert process.stdout is not None
    first = process.stdout.readline()
    running = offspring(process)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    *events, summary = [json.loads(line) for line in [first, *output.splitlines()]]
    assert (summary["kill"], summary["fail_over"]["provider"]) == (None, "cartesia")
    assert summary["fail_over"]["sessions"]
    assert summary["fail_over"]["turns"] >= 1
    assert (summary["total"]["words_lost"], summary["total"]["words_repeated"]) == (0, 0)
    moved = 0
    for one in summary["sessions"]:
        own = [event for event in events if event["session"] == one["session"]]
        assert [event["seq"] for event in own] == list(range(1, len(own) + 1))
        turns = [event for event in own if event["type"].startswith("turn.")]
        starts = {each["turn"]: each for each in turns if each["type"] == "turn.start"}
        ends = {each["turn"]: each for each in turns if each["type"] == "turn.end"}
        assert list(starts) == list(ends) == list(range(one["turns"]))
        for number, end in ends.items():
            if (starts[number]["provider"], end["provider"]) == ("cartesia", "flux"):
                assert end["connection"] > starts[number]["connection"]
                moved += 1
    assert moved >= 1
    assert_gone(running, temporary)


def test_demo_plays_own_file_in_plain_lines(demo: Start, short_clip: Path, temporary: Path) -> None:
    process = demo(str(short_clip), "--no-kill", "--traces")
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert output.startswith("starting Redis ...\n")
    assert "Go forward" in output
    assert re.search(r"s  short  turn\.end +0 Go forward", output)
    assert "unknown, because these files have no reference" in output
    spans = output.partition("Spans, a trace of each session")[2].partition("Summary")[0]
    assert re.search(r"^short  [0-9a-f]{32}$", spans, re.MULTILINE)
    made = re.findall(r"^ +([a-z]+ stt\S*) +(demo|worker-[12]) +[\d.]+ s ", spans, re.MULTILINE)
    assert made[0] == ("send stt.sessions", "demo")
    assert {name for name, _ in made[1:]} == {
        "receive stt.sessions",
        "connect stt",
        "process stt.audio",
        "flush stt",
    }
    assert "turnbus push" in output.partition("Where to go next")[2]
    assert "\x1b" not in output
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_demo_stopped_early_leaves_nothing(
    demo: Start, short_clip: Path, temporary: Path, stop: signal.Signals
) -> None:
    process = demo(str(short_clip), "--json")
    assert process.stdout is not None
    assert "session.started" in process.stdout.readline()
    running = offspring(process)
    assert len(running) >= 4  # Redis, the turns server and two workers
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if stop is signal.SIGINT else -stop)
    assert "Traceback" not in errors
    assert_gone(running, temporary)


@pytest.mark.slow
def test_demo_names_process_that_dies(demo: Start, short_clip: Path, temporary: Path) -> None:
    process = demo(str(short_clip), "--no-kill", "--json")
    assert process.stdout is not None
    process.stdout.readline()
    running = offspring(process)
    # Its watcher runs beside it, a shell with the same words in its command line.
    commands = {one: one.cmdline() for one in running}
    (server,) = (
        one
        for one, command in commands.items()
        if command[0] == sys.executable and "stt-server" in command
    )
    server.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    stopped = "turnbus: the STT server of cartesia stopped by itself (SIGKILL); it last wrote:\n"
    assert stopped in errors
    assert "Traceback" not in errors
    assert_gone(running, temporary)


def test_demo_refuses_to_kill_worker_and_provider(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--fail-over", "--kill"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "turnbus: --fail-over kills a provider instead of a worker: omit --kill\n"
    )


@pytest.mark.parametrize(("lost", "code"), [(None, 0), (0, 0), (3, 1)])
@pytest.mark.parametrize(
    ("options", "victim"),
    [([], "worker"), (["--kill"], "worker"), (["--no-kill"], None), (["--fail-over"], "provider")],
)
def test_demo_exit_code_reports_lost_words(
    lost: int | None,
    code: int,
    options: list[str],
    victim: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def demo_that_loses(cast: list[DemoSession], *chosen: object) -> Summary:
        assert chosen[-1] == victim
        total = summarize(DemoState(cast, (), (), 0.0), 1.0)
        return replace(total, total=replace(total.total, words_lost=lost))

    monkeypatch.setattr(run, "run_demo", demo_that_loses)
    assert main(["demo", "--json", *options]) == code


def test_demo_refuses_unplayable_file_before_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(tmp_path / "none.wav")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"turnbus: {tmp_path / 'none.wav'}: cannot be read: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "otlp"},
            "--traces: OTEL_TRACES_EXPORTER=otlp sends spans elsewhere",
        ),
        ({"OTEL_SDK_DISABLED": "true"}, "--traces: OTEL_SDK_DISABLED=true disables spans"),
    ],
)
def test_demo_reports_spans_it_cannot_show(
    variables: dict[str, str],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["demo", "--traces"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, what in captured.err) == ("", True)


@pytest.mark.parametrize("count", ["0", "13", "x"])
def test_demo_refuses_bad_usage(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["demo", "--sessions", count])
    assert end.value.code == 2
    assert "--sessions: must be a whole number from 1 to 12" in capsys.readouterr().err
