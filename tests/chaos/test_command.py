"""`python -m tests.chaos` as a command: its options, its report, its exit code."""

import shlex
from pathlib import Path

import msgspec
import pytest

from tests.chaos.__main__ import Chaos, make_parser
from tests.chaos.faults import ScheduledFault, schedule
from tests.chaos.plan import ChaosPlan
from worker.cli.main import main as run_program


def main(argv: list[str]) -> int:
    return run_program(argv, make_parser)


PLANS = (
    ChaosPlan(),
    ChaosPlan(seed=12_345_678, turns=10_000, sessions=80, latency_ms=900.0),
    ChaosPlan(text_style="no-break"),
    ChaosPlan(rewording=True, faults=("kill", "lost-reply"), every_s=0.5, workers=2, connections=9),
    ChaosPlan(max_lag_s=5.0, long_every=0),
    ChaosPlan(providers="flux,cartesia", mixed=True),
)


@pytest.mark.parametrize("plan", PLANS)
def test_repeat_command_line_gives_the_same_plan(plan: ChaosPlan) -> None:
    command = make_parser([]).parse_command(shlex.split(plan.repeat))
    assert isinstance(command, Chaos)
    assert command.plan == plan


def test_tiny_run_prints_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Its one session sends audio for four seconds, with four cuts.
    size = ["--seed", "8", "--turns", "2", "--sessions", "1", "--workers", "1"]
    logs = tmp_path / "logs"
    breaking = ["--faults", "stt-cut", "--every-s", "1", "--json", "--logs", str(logs)]
    assert main([*size, *breaking]) == 0
    shown = capsys.readouterr()
    report = msgspec.json.decode(shown.out)
    assert report["ok"] is True
    assert report["violations"] == []
    assert report["sessions"] == 1
    assert report["words"] >= report["turns"] >= 1
    assert set(report["faults"]) == {"stt-cut cartesia"}
    plan = msgspec.convert(report["plan"], ChaosPlan)
    assert msgspec.convert(report["schedule"], tuple[ScheduledFault, ...]) == schedule(plan)
    assert report["sockets"] > 1
    assert "injecting faults" in shown.err
    assert "cartesia: cut 1 sockets" in (logs / "faults.log").read_text()
    assert (logs / "worker-1.1.log").stat().st_size


def test_unknown_fault_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--faults", "kill,flood"]) == 1
    assert capsys.readouterr().err.startswith(
        "turnbus: unknown faults: flood; the faults are kill, "
    )


def test_rewording_requires_separators(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rewording", "--text-style", "none"]) == 2
    assert "--text-style none" in capsys.readouterr().err
