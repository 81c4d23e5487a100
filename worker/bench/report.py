"""Report of a load benchmark, and what all reports share. No I/O."""

import datetime as dt
import math
from collections.abc import Callable, Sequence
from statistics import linear_regression, median
from typing import Final, NamedTuple

import msgspec

from worker.bench.machine import Machine, Sample, WorkerLatencies
from worker.bench.plan import SLOT_MS, LoadPlan
from worker.bench.words import WordResult

_FULL: Final = 0.85  # of a core: above this, events of overlapping turns wait
_LATE_SLOTS: Final = 0.01
_BUSY: Final = 0.9


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What every report of a benchmark has."""

    date: str
    machine: Machine
    versions: dict[str, str | None]

    def environment(self) -> list[str]:
        """Return the machine, the versions and the date."""
        machine = self.machine
        known = [f"{name} {number or '-'}" for name, number in self.versions.items()]
        load = ", ".join(f"{average:.2f}" for average in machine.load)
        return [
            f"{machine.cpu}, {machine.cores} cores, {machine.system}, load before {load}",
            ", ".join(known),
            self.date,
        ]


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Quantiles in milliseconds."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float


def quantiles(values: Sequence[float]) -> Quantiles:
    """Return the quantiles by nearest rank, each a value that occurred; zeros without any."""
    ordered = sorted(values)
    if not ordered:
        return Quantiles(count=0, p50=0, p90=0, p99=0, max=0)

    def at(share: float) -> float:
        return ordered[math.ceil(share * len(ordered)) - 1]

    return Quantiles(count=len(ordered), p50=at(0.5), p90=at(0.9), p99=at(0.99), max=ordered[-1])


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line through points (x, y), by least squares; 0 without two."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    return linear_regression(*zip(*points, strict=True)).slope


class LoadRun(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of one run, from the end of the warm-up to the end of the plan."""

    chunks_per_s: float
    events_per_s: float
    cpu_us_per_chunk: dict[str, float]
    """CPU microseconds per chunk, by process."""
    cpu_share: dict[str, float]
    """Share of one core, by process."""
    sessions_per_core: float
    """Estimated maximum, from the worker's CPU per chunk."""
    kib_per_session: float
    """Growth of the worker's resident memory since before the first session."""
    worker_rss: tuple[int, ...]
    """Resident bytes of the worker, sampled evenly over the window."""
    begun: int
    """Number of sessions that replaced others."""
    growth_kib_per_min: float
    """Slope of `worker_rss`, by least squares."""
    latency_ms: Quantiles
    """Latency from the append of a word's last chunk to the append of its `turn.update`."""
    latency_tenths_ms: tuple[Quantiles, ...]
    """The same in each tenth of the window: it must not drift in a long run."""
    delays: WorkerLatencies
    """The worker's two parts of that latency, from its metrics."""
    slots_late: float
    """Share of the producer's slots that began more than a slot too late."""
    slot_latest_ms: float
    machine_busy: float
    """Share of all cores used by all programs."""
    others_busy: float
    """Share of all cores used by programs outside the benchmark."""
    verdict: WordResult
    failures: tuple[str, ...]
    """Errors of the first sessions that failed."""

    @property
    def kib_per_begun(self) -> float:
        """Growth of the worker for each session that replaced another; 0 without any."""
        grown = (self.worker_rss[-1] - self.worker_rss[0]) / 1024
        return grown / self.begun if self.begun else 0.0


class LoadReport(Report, frozen=True, kw_only=True):
    """All runs of one plan."""

    plan: LoadPlan
    runs: tuple[LoadRun, ...]

    @property
    def verdict(self) -> WordResult:
        """Sum over all runs."""
        return sum((run.verdict for run in self.runs), WordResult())


def run_of(
    plan: LoadPlan,
    before: Sample,
    samples: Sequence[Sample],
    *,
    cores: int,
    chunks: int,
    begun: int,
    events: int,
    latencies: Sequence[tuple[int, int]],
    delays: WorkerLatencies,
    slots_late_ms: Sequence[float],
    verdict: WordResult,
    failures: Sequence[str],
) -> LoadRun:
    """Compute the measurements of a run.

    `before` was read before the first session. `samples` and all counts are of the measured
    window; the verdict is of the whole run. `latencies` are the time of each word, in milliseconds,
    and its latency.
    """
    last = samples[-1]
    began_ms, tenth_ms = samples[0].at_ms, (last.at_ms - samples[0].at_ms) / 10
    tenths: list[list[int]] = [[] for _ in range(10)]
    for at_ms, latency_ms in latencies:
        tenths[min(9, int((at_ms - began_ms) / max(tenth_ms, 1)))].append(latency_ms)
    used = last.since(samples[0])
    per_chunk = {name: cpu_s * 1e6 / max(1, chunks) for name, cpu_s in used.cpu_s.items()}
    late = sum(ms > SLOT_MS for ms in slots_late_ms)
    return LoadRun(
        chunks_per_s=chunks / used.seconds,
        events_per_s=events / used.seconds,
        cpu_us_per_chunk=per_chunk,
        cpu_share=used.shares,
        sessions_per_core=1e6 / max(per_chunk["worker"], 1e-3) / plan.chunks_per_s,
        kib_per_session=(last.rss["worker"] - before.rss["worker"]) / 1024 / plan.sessions,
        worker_rss=tuple(sample.rss["worker"] for sample in samples),
        begun=begun,
        growth_kib_per_min=slope([(at.at / 60, at.rss["worker"] / 1024) for at in samples]),
        latency_ms=quantiles([latency_ms for _, latency_ms in latencies]),
        latency_tenths_ms=tuple(map(quantiles, tenths)),
        delays=delays,
        slots_late=late / max(1, len(slots_late_ms)),
        slot_latest_ms=max(slots_late_ms, default=0.0),
        machine_busy=used.machine_busy_s / used.seconds / cores,
        others_busy=used.others_s / used.seconds / cores,
        verdict=verdict,
        failures=tuple(failures),
    )


class Measure(NamedTuple):
    """One line of the report."""

    name: str
    label: str
    value: Callable[[LoadRun], float]
    unit: str = ""
    digits: int = 0

    def text(self, value: float) -> str:
        """Format a value."""
        return f"{value:,.{self.digits}f}"


def _cpu(process: str, label: str) -> tuple[Measure, Measure]:
    return (
        Measure(
            f"{process}_us_per_chunk",
            label,
            lambda run: run.cpu_us_per_chunk[process],
            "us/chunk",
            1,
        ),
        Measure(f"{process}_core", "", lambda run: run.cpu_share[process] * 100, "% of a core"),
    )


MEASURES: Final = (
    *_cpu("worker", "worker CPU"),
    Measure("sessions_per_core", "sessions per core (1)", lambda run: run.sessions_per_core),
    Measure("kib_per_session", "memory (2)", lambda run: run.kib_per_session, "KiB/session", 1),
    Measure("rss_first_mib", "memory, at first", lambda run: run.worker_rss[0] / 2**20, "MiB", 1),
    Measure("rss_last_mib", "        at last", lambda run: run.worker_rss[-1] / 2**20, "MiB", 1),
    Measure("growth_kib_per_min", "        slope", lambda run: run.growth_kib_per_min, "KiB/min"),
    Measure("begun", "sessions replaced", lambda run: run.begun),
    Measure("kib_per_begun", "memory (3)", lambda run: run.kib_per_begun, "KiB/session", 2),
    *_cpu("redis", "Redis CPU (4)"),
    *_cpu("stt_server", "STT server CPU"),
    *_cpu("bench", "bench CPU (5)"),
    Measure("chunks_per_s", "chunks", lambda run: run.chunks_per_s, "/s"),
    Measure("events_per_s", "events", lambda run: run.events_per_s, "/s"),
    Measure("latency_p50_ms", "latency p50 (6)", lambda run: run.latency_ms.p50, "ms"),
    Measure("latency_p90_ms", "        p90", lambda run: run.latency_ms.p90, "ms"),
    Measure("latency_p99_ms", "        p99", lambda run: run.latency_ms.p99, "ms"),
    Measure("latency_max_ms", "        max", lambda run: run.latency_ms.max, "ms"),
    Measure("first_p99_ms", "        first tenth, p99", lambda run: run.latency_tenths_ms[0].p99),
    Measure("last_p99_ms", "        last tenth, p99", lambda run: run.latency_tenths_ms[-1].p99),
    Measure("sent_p50_ms", "chunk sent p50 (7)", lambda run: run.delays.sent.p50, "ms"),
    Measure("sent_p99_ms", "           p99", lambda run: run.delays.sent.p99, "ms"),
    Measure("appended_p50_ms", "event appended p50", lambda run: run.delays.appended.p50, "ms"),
    Measure("appended_p99_ms", "               p99", lambda run: run.delays.appended.p99, "ms"),
    Measure("slots_late", "late slots (8)", lambda run: run.slots_late * 100, "%", 1),
    Measure("machine_busy", "machine busy", lambda run: run.machine_busy * 100, "% of all cores"),
    Measure("others_busy", "other programs", lambda run: run.others_busy * 100, "% of all cores"),
)

NOTES: Final = (
    "(1) an estimate from the worker's CPU per chunk, which falls with more sessions",
    "(2) growth of the worker's RSS since before the first session",
    "(3) growth of the worker's RSS from first to last, per replaced session",
    "(4) including the producer's appends",
    "(5) producer and consumer",
    "(6) a word's last chunk appended -> its turn.update appended, by the Redis clock;",
    "    includes the local STT server and its socket",
    "(7) the worker's two parts, from its metrics, upper bounds: chunk appended -> sent,",
    "    event created -> appended",
    f"(8) slots of the producer that began more than {SLOT_MS} ms late",
)


class Row(NamedTuple):
    """A line of the table."""

    label: str
    value: str
    spread: str = ""
    unit: str = ""


def rows(report: LoadReport) -> list[Row]:
    """Return the table: medians, and ranges if there are several runs."""
    table = []
    for measure in MEASURES:
        values = [measure.value(run) for run in report.runs]
        low, high = measure.text(min(values)), measure.text(max(values))
        spread = f"{low} - {high}" if len(values) > 1 else ""
        table.append(Row(measure.label, measure.text(median(values)), spread, measure.unit))
    verdict = report.verdict
    faults = {
        "lost": verdict.lost,
        "repeated": verdict.repeated,
        "wrong": verdict.wrong,
        "seq faults": verdict.seq_faults,
        "errors and gaps": verdict.faults,
        "sessions not ended": verdict.unended,
    }
    table.append(Row("words sent", f"{verdict.words:,}"))
    if verdict.torn:
        table.append(Row("words interrupted by late audio", f"{verdict.torn:,}"))
    table += [Row(name, f"{count:,}") for name, count in faults.items()]
    return table


def warnings(report: LoadReport) -> list[str]:
    """Return the conditions that distort the results."""
    found = []
    for process, name in (("stt_server", "the STT server"), ("bench", "the bench process")):
        share = max(run.cpu_share[process] for run in report.runs)
        if share >= _FULL:
            found.append(f"{name} used {share:.0%} of a core: latencies are not the worker's")
    late = max(run.slots_late for run in report.runs)
    if late > _LATE_SLOTS:
        worst = max(run.slot_latest_ms for run in report.runs)
        found.append(
            f"the producer was late in {late:.1%} of its slots, by up to {worst:.0f} ms: audio "
            "was sent in bursts, and latencies are not the worker's"
        )
    busiest = max(report.runs, key=lambda run: run.machine_busy)
    if busiest.machine_busy >= _BUSY:
        found.append(
            f"the machine was {busiest.machine_busy:.0%} busy, {busiest.others_busy:.0%} with "
            "other programs: processes waited for a core, and latencies are not the worker's"
        )
    worker = max(run.cpu_share["worker"] for run in report.runs)
    if worker >= _FULL:
        found.append(f"the worker used {worker:.0%} of a core: this load is close to its maximum")
    return found


def title(report: LoadReport) -> list[str]:
    """Return the plan, the machine, the versions and the date."""
    plan = report.plan
    runs = f", {len(report.runs)} runs: medians and ranges" if len(report.runs) > 1 else ""
    audio = f"{plan.chunk_ms} ms chunks, {plan.encoding.value} {plan.sample_rate} Hz"
    lives = "" if plan.life is None else f" of {plan.life:g} s each"
    times = f"{plan.seconds:g} s after {plan.warmup:g} s{runs}"
    traced = ", traced" if plan.traced else ""
    return [
        f"{plan.sessions} sessions{lives} at {plan.provider}, {audio}, {times}{traced}",
        *report.environment(),
    ]


def footer(report: LoadReport) -> list[str]:
    """Return the warnings, then the word errors."""
    lines = [f"warning: {text}" for text in warnings(report)]
    if not report.verdict.ok:
        lines += [failure for run in report.runs for failure in run.failures]
        lines.append("FAILED: not every word of every session was transcribed exactly once")
    return lines


def aligned(table: Sequence[Sequence[str]], alignments: str) -> list[str]:
    """Return the lines of a table; `alignments` has a format's `<` or `>` for each column."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    formats = list(zip(alignments, widths, strict=True))
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, (side, width) in zip(row, formats, strict=True))
        for row in table
    ]


def joined(*parts: Sequence[str]) -> str:
    """Return the lines of a report, with an empty line between its parts."""
    return "\n\n".join("\n".join(map(str.rstrip, part)) for part in parts if part) + "\n"


def text_of(report: LoadReport) -> str:
    """Return the report as plain text."""
    return joined(title(report), aligned(rows(report), "<>><"), NOTES, footer(report))


def json_of(report: LoadReport) -> bytes:
    """Return the report as one JSON object."""
    results = {}
    for measure in MEASURES:
        values = [measure.value(run) for run in report.runs]
        results[measure.name] = {"median": median(values), "min": min(values), "max": max(values)}
    return report_json(
        report,
        results=results,
        verdict=report.verdict,
        ok=report.verdict.ok,
        warnings=warnings(report),
    )


def report_json(report: msgspec.Struct, **more: object) -> bytes:
    """Return a report and more values as one JSON object."""
    return msgspec.json.encode({**msgspec.structs.asdict(report), **more})


def now() -> str:
    """Return the date and time, in UTC."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
