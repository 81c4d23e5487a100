"""The report of a recovery benchmark, from measured values."""

import msgspec

from worker.bench.checker import Violation
from worker.bench.machine import Machine
from worker.bench.plan import RecoveryPlan
from worker.bench.recovery.report import RecoveryReport, json_of, text_of

VALUES = {"kill_connected": [250.0, 210.0, 900.0], "kill_audio": [255.0, 215.0, 905.0]}


def _report(late_ms: float = 3.0, violations: tuple[Violation, ...] = ()) -> RecoveryReport:
    return RecoveryReport(
        date="2026-01-02",
        machine=Machine("A CPU", 2, (0.1, 0.2, 0.3), "Linux 6"),
        versions={"python": "3.11", "uvloop": None},
        plan=RecoveryPlan(what=("kill",), kill_sessions=3),
        values=VALUES,
        words=1_234,
        torn=5,
        producer_late_ms=late_ms,
        violations=violations,
    )


def test_recovery_report_shows_only_measured_values() -> None:
    text = text_of(_report())
    rows = {line.strip() for line in text.splitlines()}
    assert "SIGKILL of the owner of 3 sessions inside a turn" in rows
    assert [line.split()[-4:] for line in text.splitlines() if "connected again" in line] == [
        ["3", "250", "900", "900"]
    ]
    assert "1,234 words sent: lost 0, repeated 0, damaged 0, moved 0" in rows
    for other in ("SIGTERM", "reset", "warning", "FAILED"):
        assert other not in text


def test_recovery_report_names_broken_guarantee() -> None:
    report = _report(violations=(Violation("kill-0001", "lost", "word 7"),))
    assert not report.ok
    text = text_of(report)
    assert "lost 1" in text
    assert "lost: kill-0001 word 7" in text
    assert "FAILED: 1 violations" in text


def test_recovery_report_names_late_producer() -> None:
    assert "up to 250 ms late, inside 5 words" in text_of(_report(late_ms=250.4))


def test_recovery_json_has_values_and_quantiles() -> None:
    written = msgspec.json.decode(json_of(_report()))
    assert written["values"] == VALUES
    assert written["results"]["kill_audio"] == {
        "count": 3, "p50": 255.0, "p90": 905.0, "p99": 905.0, "max": 905.0
    }  # fmt: skip
    assert written["ok"] is True
    assert written["plan"]["kill_sessions"] == 3
