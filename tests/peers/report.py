"""Report of a comparison: table, notes and JSON. No I/O."""

from collections.abc import Callable
from statistics import median
from typing import Final, NamedTuple

import msgspec

from worker.bench.plan import SLOT_MS, LoadPlan
from worker.bench.report import Report, aligned, joined, report_json
from worker.bench.words import WordResult

_FULL: Final = 0.85  # of a core
_OTHERS: Final = 0.25  # of all cores
_LATE: Final = 0.01


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of one run of one client, measured by the operating system."""

    cpu_us_per_chunk: float
    cpu_share: float
    """Of one core."""
    kib_per_session: float
    """Growth of its resident memory since before the first session."""
    mib: float
    """Its resident memory in the end."""
    slots_late: float
    """Share of the slots of its load that began more than a slot too late."""
    others_busy: float
    """What programs that are no part of the run used of all cores."""
    verdict: WordResult


class ClientRow(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of one client, and why there are no more."""

    name: str
    costs: tuple[Cost, ...]
    failure: str = ""

    def median(self, value: Callable[[Cost], float]) -> float:
        """Return the median over its runs; there must be one."""
        return median(map(value, self.costs))

    @property
    def verdict(self) -> WordResult:
        """Sum over all runs."""
        return sum((cost.verdict for cost in self.costs), WordResult())


class ComparisonReport(Report, frozen=True, kw_only=True):
    """A comparison; the row of the worker comes first."""

    plan: LoadPlan
    redis_us_per_chunk: tuple[float, ...]
    """CPU of the worker's Redis, by run."""
    rows: tuple[ClientRow, ...]

    @property
    def ok(self) -> bool:
        """Whether the worker lost and repeated no word; the other clients do not promise that."""
        return self.rows[0].verdict.ok


class _Column(NamedTuple):
    label: str
    value: Callable[[ClientRow], float]
    digits: int = 0


def _columns(report: ComparisonReport) -> tuple[_Column, ...]:
    own = report.rows[0].median(_cpu)
    return (
        _Column("CPU us/chunk", lambda row: row.median(_cpu), 1),
        _Column("x turnbus", lambda row: row.median(_cpu) / max(own, 1e-3), 2),
        _Column("% of a core", lambda row: row.median(lambda cost: cost.cpu_share) * 100),
        _Column("KiB/session", lambda row: row.median(lambda cost: cost.kib_per_session), 1),
        _Column("MiB in all", lambda row: row.median(lambda cost: cost.mib)),
        _Column("late slots %", lambda row: row.median(lambda cost: cost.slots_late) * 100, 1),
        _Column("words", lambda row: row.verdict.words),
        _Column("lost", lambda row: row.verdict.lost),
        _Column("repeated", lambda row: row.verdict.repeated),
        _Column("wrong", lambda row: row.verdict.wrong),
    )


def _cpu(cost: Cost) -> float:
    return cost.cpu_us_per_chunk


def table(report: ComparisonReport) -> list[list[str]]:
    """Return the table, its head first; a client without a run has no values."""
    columns = _columns(report)
    lines = [["", *(column.label for column in columns)]]
    for row in report.rows:
        if row.costs:
            values = [f"{column.value(row):,.{column.digits}f}" for column in columns]
        else:
            values = ["-"] * len(columns)
        lines.append([row.name, *values])
    return lines


def title(report: ComparisonReport) -> list[str]:
    """Return what was run, and where."""
    plan = report.plan
    runs = max(len(row.costs) for row in report.rows)
    count = f", {runs} runs: medians; words are of all" if runs > 1 else ""
    audio = f"{plan.chunk_ms} ms chunks, {plan.encoding.value} {plan.sample_rate} Hz"
    return [
        f"{plan.sessions} sessions, {audio}, {plan.seconds:g} s after {plan.warmup:g} s{count}",
        *report.environment(),
    ]


def notes(report: ComparisonReport) -> list[str]:
    """Return notes on the measurements and their bias."""
    redis_us = median(report.redis_us_per_chunk)
    return [
        "One process each, one after another, with the same words and an STT server of its own;",
        "memory is growth since before the first session.",
        "The comparison favors the other clients: a loop in their process passes audio from memory",
        "and keeps the text of each turn. turnbus reads audio from Redis, publishes and commits",
        "every event there. A session of turnbus survives its process, the others do not.",
        f"Beside the worker, its Redis took {redis_us:.1f} us of CPU per chunk, appends included.",
        f"Late slots: the load's, begun more than {SLOT_MS} ms after their time. Those of turnbus",
        "are of a process of its own, those of the others of their own event loop.",
    ]


def footer(report: ComparisonReport) -> list[str]:
    """Return the failures and the warnings."""
    lines = [f"{row.name}: {row.failure}" for row in report.rows if row.failure]
    for row in report.rows:
        for cost in row.costs:
            if cost.cpu_share >= _FULL:
                lines.append(
                    f"warning: {row.name} used {cost.cpu_share:.0%} of a core: this load is about "
                    "all it can do"
                )
            if cost.slots_late >= _LATE:
                lines.append(f"warning: {row.name}: {cost.slots_late:.1%} of its slots were late")
            if cost.others_busy >= _OTHERS:
                lines.append(
                    f"warning: while {row.name} ran, other programs used {cost.others_busy:.0%} "
                    "of the machine"
                )
    if not report.ok:
        lines.append("FAILED: turnbus did not transcribe every session whole, each word once")
    return lines


def text_of(report: ComparisonReport) -> str:
    """Return the report as plain text."""
    lines = table(report)
    alignments = "<" + ">" * (len(lines[0]) - 1)
    return joined(title(report), aligned(lines, alignments), notes(report), footer(report))


def json_of(report: ComparisonReport) -> bytes:
    """Return the report as one JSON object."""
    columns = _columns(report)
    results = {
        row.name: {column.label: column.value(row) for column in columns}
        for row in report.rows
        if row.costs
    }
    return report_json(
        report, results=results, ok=report.ok, notes=notes(report), warnings=footer(report)
    )
