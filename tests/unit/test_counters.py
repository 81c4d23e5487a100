"""The worker's counters: buckets in Prometheus's sense, quantiles as upper bounds."""

from collections import Counter
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.telemetry.counters import BOUNDS_S, Counters, Histogram


def test_bucket_includes_its_upper_bound() -> None:
    histogram = Histogram()
    for bound in BOUNDS_S:
        histogram.observe(bound)
    assert histogram.counts == [1] * len(BOUNDS_S) + [0]
    histogram.observe(BOUNDS_S[-1] + 0.001)
    histogram.observe(0.0)
    assert (histogram.counts[0], histogram.counts[-1]) == (2, 1)
    assert histogram.count == len(BOUNDS_S) + 2


def test_bucket_bounds_increase() -> None:
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
def test_quantile_needs_durations(q: float) -> None:
    assert Histogram().quantile(q) == 0.0


def test_quantile_is_upper_bound_of_bucket() -> None:
    histogram = Histogram()
    for _ in range(98):
        histogram.observe(0.004)
    histogram.observe(0.3)
    histogram.observe(60.0)
    assert [histogram.quantile(q) for q in (0.0, 0.5, 0.98, 0.99, 1.0)] == [
        0.005,
        0.005,
        0.005,
        0.5,
        inf,
    ]


@given(st.lists(st.floats(0, 20), min_size=1), st.floats(0, 1))
def test_quantile_is_bound_above_true_value(durations: list[float], q: float) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.observe(duration)
    ordered = sorted(durations)
    rank = max(1, -int(-q * len(ordered) // 1))
    true = ordered[min(rank, len(ordered)) - 1]
    assert histogram.quantile(q) == next(bound for bound in (*BOUNDS_S, inf) if bound >= true)
    assert histogram.count == len(durations)
    assert histogram.sum_s == pytest.approx(sum(durations))


def test_counters_start_at_zero() -> None:
    counted = vars(Counters())
    assert counted
    for name, value in counted.items():
        if isinstance(value, Histogram):
            assert (value.count, value.sum_s) == (0, 0.0), name
        elif isinstance(value, Counter):
            assert value.total() == 0, name
            assert value, name
        else:
            assert value == 0, name
