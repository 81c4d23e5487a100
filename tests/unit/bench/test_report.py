"""The report of a benchmark, from its readings."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.bench.machine import Machine, Sample, WorkerLatencies, WorkerLatency
from worker.bench.plan import LoadPlan
from worker.bench.report import (
    MEASURES,
    LoadReport,
    LoadRun,
    footer,
    json_of,
    quantiles,
    rows,
    run_of,
    slope,
    text_of,
    warnings,
)
from worker.bench.words import WordResult

PLAN = LoadPlan(sessions=100, seconds=10)
MACHINE = Machine("A CPU", 2, (0.1, 0.2, 0.3), "Linux 6")


def sample(at: float, share: float = 0.1, rss: int = 0, busy: float = 0.5) -> Sample:
    """Return readings of processes with constant CPU use, on a machine with constant load."""
    names = ("worker", "redis", "stt_server", "bench")
    return Sample(
        at,
        int(at * 1_000),
        dict.fromkeys(names, at * share),
        dict.fromkeys(names, rss),
        at * 2 * busy,
    )


def run(
    share: float = 0.1, busy: float = 0.5, late_ms: float = 0.0, verdict: WordResult | None = None
) -> LoadRun:
    """Return a run of 10 s with 1000 chunks a second."""
    return run_of(
        PLAN,
        sample(0, rss=1024**2),
        [sample(at, share, 2**20 * rss, busy) for at, rss in ((5, 5), (10, 6), (15, 6))],
        cores=2,
        chunks=10_000,
        begun=50,
        events=4_000,
        latencies=[(5_000, 3), (5_999, 1), (14_999, 2)],
        delays=WorkerLatencies(WorkerLatency(10, 20), WorkerLatency(3, 5)),
        slots_late_ms=[late_ms] * 1_000,
        verdict=verdict or WordResult(words=10),
        failures=[],
    )


def report(*runs: LoadRun) -> LoadReport:
    known = {"python": "3.11", "uvloop": None, "server": "valkey 9"}
    return LoadReport(date="2026-01-01", machine=MACHINE, versions=known, plan=PLAN, runs=runs)


def test_report_computes_measures_of_run() -> None:
    got = run()
    assert got.chunks_per_s == 1_000
    assert got.events_per_s == 400
    assert got.cpu_us_per_chunk["worker"] == pytest.approx(100)
    assert got.cpu_share["redis"] == pytest.approx(0.1)
    assert got.sessions_per_core == pytest.approx(1_000)
    assert got.kib_per_session == pytest.approx(51.2)
    assert got.worker_rss == (5 * 2**20, 6 * 2**20, 6 * 2**20)
    assert got.growth_kib_per_min == pytest.approx(6 * 1024)
    assert got.kib_per_begun == pytest.approx(20.48)
    assert (got.latency_ms.count, got.latency_ms.p50, got.latency_ms.max) == (3, 2, 3)
    tenths = [tenth.count for tenth in got.latency_tenths_ms]
    assert tenths == [2, *[0] * 8, 1]
    assert got.latency_tenths_ms[0].max == 3
    assert got.machine_busy == pytest.approx(0.5)
    assert got.others_busy == pytest.approx(0.3)
    assert got.slots_late == 0


def test_report_of_empty_run_divides_by_no_zero() -> None:
    got = run_of(
        PLAN,
        sample(0),
        [sample(5, 0), sample(15, 0)],
        cores=2,
        chunks=0,
        begun=0,
        events=0,
        latencies=[],
        delays=WorkerLatencies(),
        slots_late_ms=[],
        verdict=WordResult(),
        failures=[],
    )
    assert (got.chunks_per_s, got.latency_ms.max, got.slots_late) == (0, 0, 0)
    assert (got.growth_kib_per_min, got.kib_per_begun) == (0, 0)


@pytest.mark.parametrize(
    ("points", "expected"),
    [([], 0), ([(1, 5)], 0), ([(1, 5), (1, 9)], 0), ([(0, 1), (1, 3), (2, 5)], 2)],
)
def test_slope_fits_line_through_all_points(
    points: list[tuple[float, float]], expected: float
) -> None:
    assert slope(points) == pytest.approx(expected)


@given(st.lists(st.integers(0, 10_000), min_size=1))
def test_quantiles_are_ordered_measured_values(values: list[int]) -> None:
    got = quantiles(values)
    assert got.count == len(values)
    assert {got.p50, got.p90, got.p99, got.max} <= set(values)
    assert got.p50 <= got.p90 <= got.p99 <= got.max == max(values)


def test_quantiles_use_nearest_rank() -> None:
    got = quantiles(range(1, 101))
    assert (got.p50, got.p90, got.p99, got.max) == (50, 90, 99, 100)


def test_table_of_one_run_has_no_spread() -> None:
    table = rows(report(run()))
    assert len(table) == len(MEASURES) + 7
    assert not any(row.spread for row in table)


def test_table_of_several_runs_has_medians_and_ranges() -> None:
    first = rows(report(run(0.1), run(0.4), run(0.2)))[0]
    assert (first.label, first.value, first.spread) == ("worker CPU", "200.0", "100.0 - 400.0")


def test_report_columns_are_aligned() -> None:
    text = text_of(report(run()))
    lines = text.splitlines()
    assert "100 sessions at cartesia, 100 ms chunks, pcm_s16le 16000 Hz, 10 s after 5 s" in lines
    assert "python 3.11, uvloop -, server valkey 9" in lines
    ends = {line.index(unit) for line in lines for unit in ("us/chunk", " % of") if unit in line}
    assert len(ends) <= 2
    assert not any(line != line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (run(), []),
        (run(late_ms=11), ["the producer was late in 100.0% of its slots, by up to 11 ms"]),
        (run(busy=0.95), ["the machine was 95% busy, 75% with other programs"]),
        (
            run(share=0.9),
            ["the STT server used 90%", "the bench process used 90%", "the worker used 90%"],
        ),
    ],
)
def test_report_warns_of_unreliable_numbers(measured: LoadRun, expected: list[str]) -> None:
    got = warnings(report(run(), measured))
    assert len(got) == len(expected)
    assert all(line.startswith(start) for line, start in zip(got, expected, strict=True))


def test_report_names_lost_word_last_and_in_table() -> None:
    failed = msgspec.structs.replace(
        run(verdict=WordResult(words=10, lost=3)), failures=("bench-1: lost 1 2 3",)
    )
    lossy = report(run(), failed)
    assert footer(lossy)[0] == "bench-1: lost 1 2 3"
    assert footer(lossy)[-1].startswith("FAILED")
    assert {row.label: row.value for row in rows(lossy)}["lost"] == "3"
    assert not msgspec.json.decode(json_of(lossy))["ok"]


def test_report_json_is_one_object() -> None:
    got = msgspec.json.decode(json_of(report(run(0.1), run(0.2))))
    assert got["ok"] is True
    assert got["machine"]["cores"] == 2
    assert got["versions"]["server"] == "valkey 9"
    assert got["plan"]["sessions"] == 100
    assert len(got["runs"]) == 2
    assert set(got["results"]) == {measure.name for measure in MEASURES}
    assert set(got["results"]["worker_us_per_chunk"]) == {"median", "min", "max"}
