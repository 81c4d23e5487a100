"""The floor of the load benchmark: the worker and the bare relay, in turn, under one load."""

from collections.abc import Callable
from importlib.metadata import version
from statistics import median
from typing import Final

import msgspec

from tests.peers import bare_relay
from worker.bench.load import bench
from worker.bench.plan import LoadPlan
from worker.bench.report import LoadReport, LoadRun, Report, aligned, joined, now, report_json
from worker.bench.report import warnings as load_warnings
from worker.bench.terminal import Progress
from worker.local.process import WORKER_MODULE

_PROGRAMS: Final = {"turnbus": WORKER_MODULE, "bare relay": bare_relay.__name__}
_MEASURES: Final[tuple[tuple[str, Callable[[LoadRun], float], int], ...]] = (
    ("CPU us/chunk", lambda run: run.cpu_us_per_chunk["worker"], 1),
    ("% of a core", lambda run: run.cpu_share["worker"] * 100, 0),
    ("KiB/session", lambda run: run.kib_per_session, 1),
    ("Redis CPU us/chunk", lambda run: run.cpu_us_per_chunk["redis"], 1),
    ("latency p50, ms", lambda run: run.latency_ms.p50, 0),
    ("latency p99, ms", lambda run: run.latency_ms.p99, 0),
)


class FloorReport(Report, frozen=True, kw_only=True):
    """Runs of the worker and of the bare relay, alternated."""

    plan: LoadPlan
    loads: dict[str, LoadReport]
    """Reports of the load benchmark, by program; the worker comes first."""

    @property
    def ok(self) -> bool:
        """Whether both passed every word on once."""
        return all(load.verdict.ok for load in self.loads.values())

    def values(self, measure: Callable[[LoadRun], float]) -> list[list[float]]:
        """Return a value of each run: those of the worker, of the relay, and their ratios."""
        own, floor = ([measure(run) for run in load.runs] for load in self.loads.values())
        return [own, floor, [a / b for a, b in zip(own, floor, strict=True) if b]]


async def compare_floor(plan: LoadPlan, repeat: int, progress: Progress) -> FloorReport:
    """Run the plan `repeat` times with the worker and the bare relay.

    Raises TurnbusError if a process fails.
    """
    loads: dict[str, list[LoadReport]] = {name: [] for name in _PROGRAMS}
    for number in range(repeat):
        for name, module in _PROGRAMS.items():
            progress.phase(f"run {number + 1} of {repeat}: {name}")
            loads[name].append(await bench(plan, 1, progress, module=module))
    first = loads["turnbus"][0]
    return FloorReport(
        date=now(),
        machine=first.machine,
        versions=first.versions | {"picows": version("picows")},
        plan=plan,
        loads={
            name: msgspec.structs.replace(
                each[0], runs=tuple(run for one in each for run in one.runs)
            )
            for name, each in loads.items()
        },
    )


def table(report: FloorReport) -> list[list[str]]:
    """Return the table, its head first: medians, and ranges if there are several runs."""
    lines = [["", *report.loads, "ratio"]]
    for label, measure, digits in _MEASURES:
        own, floor, ratios = report.values(measure)
        lines.append([label, _text(own, digits), _text(floor, digits), _text(ratios, 2)])
    for label in ("words", "lost", "repeated", "wrong"):
        counts = [getattr(load.verdict, label) for load in report.loads.values()]
        lines.append([label, *(f"{count:,}" for count in counts), ""])
    return lines


def _text(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    shown = f"{median(values):,.{digits}f}"
    if len(values) == 1:
        return shown
    return f"{shown} ({min(values):,.{digits}f} - {max(values):,.{digits}f})"


def title(report: FloorReport) -> list[str]:
    """Return what was run, and where."""
    plan = report.plan
    runs = len(report.loads["turnbus"].runs)
    count = f", {runs} runs: median (min - max)" if runs > 1 else ""
    times = f"{plan.seconds:g} s after {plan.warmup:g} s{count}"
    return [
        f"{plan.sessions} sessions, {plan.chunk_ms} ms chunks, {times}",
        *report.environment(),
    ]


NOTES: Final = (
    "The bare relay moves chunks and events between Redis and the provider, without a guarantee.",
    "Latency: a word's last chunk appended -> its turn.update appended, by the Redis clock.",
    "Redis: including the producer's appends.",
)


def warnings(report: FloorReport) -> list[str]:
    """Return the conditions that distort the results, then the word errors."""
    lines = [
        f"warning: {name}: {text}"
        for name, load in report.loads.items()
        for text in load_warnings(load)
    ]
    for name, load in report.loads.items():
        if not load.verdict.ok:
            lines += [f"{name}: {failure}" for run in load.runs for failure in run.failures]
            lines.append(f"FAILED: {name} did not pass on every word exactly once")
    return lines


def text_of(report: FloorReport) -> str:
    """Return the report as plain text."""
    return joined(title(report), aligned(table(report), "<>>>"), NOTES, warnings(report))


def json_of(report: FloorReport) -> bytes:
    """Return the report as one JSON object."""
    results = {}
    for label, measure, _ in _MEASURES:
        values = zip((*report.loads, "ratio"), report.values(measure), strict=True)
        results[label] = {
            name: {"median": median(each), "min": min(each), "max": max(each)}
            for name, each in values
            if each
        }
    return report_json(report, results=results, ok=report.ok, warnings=warnings(report))
