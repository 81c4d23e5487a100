"""Pairs of load benchmarks, run in turn: worker and bare relay, or one provider and another."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from statistics import median
from typing import Final, NamedTuple

import msgspec

from tests.peers import bare_relay
from worker.bench.load import bench
from worker.bench.plan import LoadPlan
from worker.bench.report import LoadReport, LoadRun, Report, aligned, joined, now, report_json
from worker.bench.report import warnings as load_warnings
from worker.bench.terminal import Progress
from worker.local.process import WORKER_MODULE


class Side(NamedTuple):
    """One of the two that are compared."""

    plan: LoadPlan
    module: str = WORKER_MODULE
    """Module of the program that is measured."""


Pair = Mapping[str, Side]
"""Both sides, by name; the report has the ratio of the first to the second."""


def floor_pair(plan: LoadPlan) -> Pair:
    """Return the worker and the bare relay, which guarantees nothing."""
    return {"turnbus": Side(plan), "bare relay": Side(plan, bare_relay.__name__)}


def provider_pair(plan: LoadPlan) -> Pair:
    """Return the worker with Flux, and with Cartesia."""
    flux = msgspec.structs.replace(plan, provider="flux")
    cartesia = msgspec.structs.replace(plan, provider="cartesia")
    return {"flux": Side(flux), "cartesia": Side(cartesia)}


_MEASURES: Final[tuple[tuple[str, Callable[[LoadRun], float], int], ...]] = (
    ("CPU us/chunk", lambda run: run.cpu_us_per_chunk["worker"], 1),
    ("% of a core", lambda run: run.cpu_share["worker"] * 100, 0),
    ("events/s", lambda run: run.events_per_s, 0),
    ("KiB/session", lambda run: run.kib_per_session, 1),
    ("Redis CPU us/chunk", lambda run: run.cpu_us_per_chunk["redis"], 1),
    ("latency p50, ms", lambda run: run.latency_ms.p50, 0),
    ("latency p99, ms", lambda run: run.latency_ms.p99, 0),
)


class PairReport(Report, frozen=True, kw_only=True):
    """Runs of both sides of a pair, alternated."""

    loads: dict[str, LoadReport]
    """Reports of the load benchmark, by the name of the side."""

    @property
    def plan(self) -> LoadPlan:
        """Plan of the first side; that of the other has the same size."""
        return next(iter(self.loads.values())).plan

    @property
    def ok(self) -> bool:
        """Whether both passed every word on once."""
        return all(load.verdict.ok for load in self.loads.values())

    def values(self, measure: Callable[[LoadRun], float]) -> list[list[float]]:
        """Return a value of each run: those of the first side, of the second, and their ratios."""
        first, second = ([measure(run) for run in load.runs] for load in self.loads.values())
        return [first, second, [a / b for a, b in zip(first, second, strict=True) if b]]


async def compare(pair: Pair, repeat: int, progress: Progress) -> PairReport:
    """Run both sides of a pair in turn, `repeat` times each.

    Raises TurnbusError if a process fails.
    """
    loads: dict[str, list[LoadReport]] = {name: [] for name in pair}
    for number in range(repeat):
        for name, side in pair.items():
            progress.phase(f"run {number + 1} of {repeat}: {name}")
            loads[name].append(await bench(side.plan, 1, progress, module=side.module))
    first = next(iter(loads.values()))[0]
    return PairReport(
        date=now(),
        machine=first.machine,
        versions=first.versions | {"picows": version("picows")},
        loads={
            name: msgspec.structs.replace(
                each[0], runs=tuple(run for one in each for run in one.runs)
            )
            for name, each in loads.items()
        },
    )


def table(report: PairReport) -> list[list[str]]:
    """Return the table, its head first: medians, and ranges if there are several runs."""
    lines = [["", *report.loads, "ratio"]]
    for label, measure, digits in _MEASURES:
        first, second, ratios = report.values(measure)
        lines.append([label, _text(first, digits), _text(second, digits), _text(ratios, 2)])
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


def title(report: PairReport) -> list[str]:
    """Return what was run, and where."""
    plan = report.plan
    runs = len(next(iter(report.loads.values())).runs)
    count = f", {runs} runs: median (min - max)" if runs > 1 else ""
    times = f"{plan.seconds:g} s after {plan.warmup:g} s{count}"
    return [
        f"{plan.sessions} sessions, {plan.chunk_ms} ms chunks, {times}",
        *report.environment(),
    ]


_ABOUT: Final = {
    "bare relay": "The bare relay moves chunks and events between Redis and the provider, without "
    "a guarantee.",
}
NOTES: Final = (
    "Latency: a word's last chunk appended -> its turn.update appended, by the Redis clock.",
    "Redis: including the producer's appends.",
)


def warnings(report: PairReport) -> list[str]:
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


def text_of(report: PairReport) -> str:
    """Return the report as plain text."""
    notes = [note for side, note in _ABOUT.items() if side in report.loads]
    table_lines = aligned(table(report), "<>>>")
    return joined(title(report), table_lines, [*notes, *NOTES], warnings(report))


def json_of(report: PairReport) -> bytes:
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
