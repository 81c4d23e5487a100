"""The worker's own delays, from the metrics it exports."""

import pytest

from worker.bench.machine import APPENDED, SENT, HistogramReading, WorkerLatencies, WorkerLatency
from worker.telemetry.counters import Histogram
from worker.telemetry.metrics import INSTRUMENTS, Sample
from worker.telemetry.prometheus import render


def _text(sent_s: list[float], appended_s: list[float]) -> str:
    found = {"turnbus.chunk.lag": Histogram(), "turnbus.commit.duration": Histogram()}
    for name, values in zip(found, (sent_s, appended_s), strict=True):
        for value in values:
            found[name].observe(value)
    return render(
        Sample(each, found[each.name]) for each in INSTRUMENTS if each.name in found
    ).decode()


def test_latencies_are_difference_of_two_readings() -> None:
    before = HistogramReading(_text([9.0] * 50, [9.0] * 50))
    after = HistogramReading(_text([9.0] * 50 + [0.004] * 98 + [0.04] * 2, [9.0] * 50 + [0.0015]))
    assert before.until(after) == WorkerLatencies(WorkerLatency(5, 50), WorkerLatency(2, 2))


def test_latencies_without_counts_are_empty() -> None:
    reading = HistogramReading(_text([1.0], []))
    assert reading.until(reading) == WorkerLatencies()


@pytest.mark.parametrize("name", [SENT, APPENDED])
def test_latency_metrics_exist(name: str) -> None:
    assert f"{name}_bucket" in _text([], [])
