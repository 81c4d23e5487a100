"""A small run of `turnbus bench`. It asserts nothing about time."""

import signal
import subprocess
import sys
from pathlib import Path

import anyio
import msgspec
import psutil
import pytest

from tests.support.processes import left_of, until
from worker.bench.load import open_otlp_sink
from worker.bench.report import MEASURES
from worker.cli.main import main
from worker.local.emulator.engines.script_words import WORD_MS
from worker.local.harness import child_environment

WHOLE_WORDS = ("--chunk-ms", str(WORD_MS))
"""Words per chunk. With one, a producer that is held up splits no word."""


@pytest.mark.parametrize("provider", ["cartesia", "flux"])
def test_bench_measures_small_run(
    provider: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    size = ["--sessions", "5", "--seconds", "1", "--warmup", "1", *WHOLE_WORDS]
    command = ["bench", *size, "--provider", provider, "--json", "--out", str(out)]
    assert main(command) == 0
    shown = capsys.readouterr()
    report = msgspec.json.decode(shown.out)
    assert msgspec.json.decode(out.read_bytes()) == report
    assert report["ok"] is True
    assert (report["plan"]["sessions"], report["plan"]["provider"]) == (5, provider)
    assert report["verdict"]["words"] >= 5 * 8
    assert not any(count for name, count in report["verdict"].items() if name != "words")
    (run,) = report["runs"]
    assert run["chunks_per_s"] > 0
    assert run["latency_ms"]["count"] > 0
    assert set(run["cpu_us_per_chunk"]) == {"worker", "redis", "stt_server", "bench"}
    assert set(report["results"]) == {measure.name for measure in MEASURES}
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["server"]
    assert "starting 5 sessions" in shown.err


@pytest.mark.slow
def test_bench_restarts_sessions(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--sessions", "4", "--seconds", "5", "--warmup", "1", *WHOLE_WORDS]
    assert main(["bench", *size, "--churn", "1", "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out)
    (run,) = report["runs"]
    assert run["begun"] >= 2
    assert len(run["worker_rss"]) == 6
    # Each session restarts its words and has at least one utterance.
    assert report["verdict"]["words"] >= (4 + run["begun"]) * 8


async def test_bench_traced_worker_exports_spans() -> None:
    with open_otlp_sink() as sink:
        settings = {**child_environment({}), **sink.variables, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        program = (
            "from worker import telemetry; from opentelemetry import trace\n"
            "telemetry.configure('a'); trace.get_tracer('t').start_span('s').end()\n"
            "telemetry.shut_down()"
        )
        await anyio.run_process([sys.executable, "-c", program], env=settings)
        assert sink.exports == 1


@pytest.mark.slow
def test_bench_title_names_tracing(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--sessions", "2", "--seconds", "1", "--warmup", "1", "--traced", *WHOLE_WORDS]
    assert main(["bench", *size]) == 0
    assert "2 sessions, " in (title := capsys.readouterr().out.splitlines()[0])
    assert title.endswith("traced")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_bench_leaves_no_process(end: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    command = [sys.executable, "-m", "worker", "bench", "--sessions", "2"]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as bench,
    ):
        until(lambda: "starting 2 sessions" in log.read_text(), bench, "its sessions start")
        started = psutil.Process(bench.pid).children(recursive=True)
        bench.send_signal(end)
        code = bench.wait()
    assert code == (130 if end is signal.SIGINT else -end)
    assert len(started) >= 3
    assert left_of(started) == []
