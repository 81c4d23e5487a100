"""Report of a recovery benchmark. No I/O."""

from typing import Final, NamedTuple

from worker.bench.checker import Violation, broken_words
from worker.bench.plan import LATENCY_MS, RecoveryPlan
from worker.bench.recovery.scenarios import CUT_MS, CUT_SCENARIOS, TURN_MS
from worker.bench.report import Quantiles, Report, quantiles, report_json

_SHOWN: Final = 20
_LATE_MS: Final = 100.0


class RecoveryReport(Report, frozen=True, kw_only=True):
    """All runs of one plan."""

    plan: RecoveryPlan
    values: dict[str, list[float]]
    """Values in milliseconds, by measure."""
    words: int
    """Number of words sent."""
    torn: int
    """Number of words in which the producer paused, which may be damaged."""
    producer_late_ms: float
    """Maximum delay of the producer."""
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no violations."""
        return not self.violations


class _Group(NamedTuple):
    title: str
    measures: dict[str, str]
    """Labels by name."""


def _groups(plan: RecoveryPlan) -> list[_Group]:
    return [
        _Group(
            f"SIGKILL of the owner of {plan.kill_sessions} sessions inside a turn",
            {
                "kill_connected": "until a session is connected again",
                "kill_audio": "until audio is sent on that socket",
            },
        ),
        _Group(
            f"SIGTERM to the owner of {plan.drain_sessions} sessions between turns",
            {
                "drain_exit": "until the process has exited",
                "drain_owned": "until every session has an owner",
                "drain_connected": "until every session sends audio again",
            },
        ),
        _Group(
            f"socket reset {CUT_MS / 1_000:g} s into a turn of {TURN_MS / 1_000:g} s: "
            "how much later it ends",
            {
                **{scenario.name: scenario.label for scenario in CUT_SCENARIOS},
                "uncut": "without a reset, last word to turn.end",
            },
        ),
    ]


def text_of(report: RecoveryReport) -> str:
    """Return the report as plain text."""
    runs = f"{report.plan.repeat} runs, " if report.plan.repeat > 1 else ""
    lines = [
        f"{runs}{report.plan.chunk_ms} ms chunks, STT server {LATENCY_MS:g} ms late",
        *report.environment(),
        "",
        f"{'ms':<40}{'n':>6}{'p50':>9}{'p99':>9}{'max':>9}",
    ]
    for title, measures in _groups(report.plan):
        shown = [name for name in measures if name in report.values]
        lines += [title] if shown else []
        lines += [_row(measures[name], quantiles(report.values[name])) for name in shown]
    return "\n".join([*lines, "", *_footer(report), ""])


def _row(label: str, ms: Quantiles) -> str:
    return f"  {label:<38}{ms.count:>6}{ms.p50:>9,.0f}{ms.p99:>9,.0f}{ms.max:>9,.0f}"


def _footer(report: RecoveryReport) -> list[str]:
    lines = [f"{report.words:,} words sent: {broken_words(report.violations)}"]
    if report.producer_late_ms > _LATE_MS:
        lines.append(
            f"warning: the producer was up to {report.producer_late_ms:.0f} ms late, inside "
            f"{report.torn} words: this machine is too busy for the load"
        )
    lines += map(str, report.violations[:_SHOWN])
    if not report.ok:
        lines.append(f"FAILED: {len(report.violations)} violations")
    return lines


def json_of(report: RecoveryReport) -> bytes:
    """Return the report as one JSON object."""
    results = {name: quantiles(values) for name, values in report.values.items()}
    return report_json(report, results=results, ok=report.ok)
