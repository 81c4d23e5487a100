"""A small run of `turnbus bench recovery`. It asserts nothing about time."""

from typing import Any

import msgspec
import pytest

from worker.bench.recovery.scenarios import CUT_SCENARIOS
from worker.cli.main import main


def _run(capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    assert main(["bench", "recovery", *options, "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["violations"] == []
    assert report["words"] > 0
    return report


def test_recovery_bench_measures_kill_without_loss(capsys: pytest.CaptureFixture[str]) -> None:
    values = _run(capsys, "kill", "--kill-sessions", "3")["values"]
    assert values.keys() == {"kill_connected", "kill_audio"}
    connected, audio = values["kill_connected"], values["kill_audio"]
    assert len(connected) == len(audio) == 3
    assert all(0 < at < transcribed for at, transcribed in zip(connected, audio, strict=True))


@pytest.mark.slow
def test_recovery_bench_measures_drain_without_loss(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["drain", "--drain-sessions", "3", "--repeat", "2", "--chunk-ms", "50"]
    values = _run(capsys, *options)["values"]
    assert values.keys() == {"drain_exit", "drain_owned", "drain_connected"}
    assert all(len(times) == 2 and min(times) > 0 for times in values.values())


@pytest.mark.slow
def test_recovery_bench_measures_cuts_without_loss(capsys: pytest.CaptureFixture[str]) -> None:
    values = _run(capsys, "cut", "--trials", "2")["values"]
    assert values.keys() == {scene.name for scene in CUT_SCENARIOS} | {"uncut"}
    assert all(len(values[scene.name]) == 2 for scene in CUT_SCENARIOS)
    assert len(values["uncut"]) == 2 * len(CUT_SCENARIOS)


def test_recovery_bench_refuses_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["fall"], ["--trials", "0"], ["--chunk-ms", "15"]):
        with pytest.raises(SystemExit) as exit_:
            main(["bench", "recovery", *options])
        assert exit_.value.code == 2
    assert "turnbus bench recovery" in capsys.readouterr().err
