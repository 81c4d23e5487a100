"""The worker's own delays, from the metrics it tells."""

import pytest

from worker.local.bench.delays import APPENDED, SENT, Delay, Delays, Reading
from worker.telemetry.exposition import render
from worker.telemetry.metrics import INSTRUMENTS
from worker.telemetry.metrics import Reading as Measured
from worker.telemetry.stats import Histogram


def _text(sent_s: list[float], appended_s: list[float]) -> str:
    found = {"turnbus.chunk.lag": Histogram(), "turnbus.commit.duration": Histogram()}
    for name, values in zip(found, (sent_s, appended_s), strict=True):
        for value in values:
            found[name].observe(value)
    return render(
        Measured(each, found[each.name]) for each in INSTRUMENTS if each.name in found
    ).decode()


def test_only_what_was_counted_between_two_readings_counts() -> None:
    before = Reading(_text([9.0] * 50, [9.0] * 50))
    after = Reading(_text([9.0] * 50 + [0.004] * 98 + [0.04] * 2, [9.0] * 50 + [0.0015]))
    assert before.until(after) == Delays(Delay(5, 50), Delay(2, 2))


def test_nothing_counted_is_no_delay() -> None:
    reading = Reading(_text([1.0], []))
    assert reading.until(reading) == Delays()


@pytest.mark.parametrize("name", [SENT, APPENDED])
def test_the_metrics_are_there(name: str) -> None:
    assert f"{name}_bucket" in _text([], [])
