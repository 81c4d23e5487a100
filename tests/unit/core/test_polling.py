"""When a stream is polled: soon after its chunks arrive, and rarely in between."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.polling import IDLE_INTERVAL_S, MAX_INTERVAL_S, ClockOffset, PollSchedule

ROUND_S = 0.015
"""Interval at which due streams are polled."""


def _watch(arrivals: list[float], lasts_s: float) -> tuple[list[float], int]:
    """Poll a stream in rounds; return each chunk's delay and the number of polls."""
    poll_schedule, now, polls, waits = PollSchedule(0.0), 0.0, 0, []
    waiting = list(arrivals)
    while waiting:
        now += ROUND_S
        if poll_schedule.next_at > now:
            continue
        polls += 1
        found = [at for at in waiting if at <= now]
        if found:
            waits += [now - at for at in found]
            waiting = waiting[len(found) :]
            poll_schedule.on_entries(now, found[-1], lasts_s)
        else:
            poll_schedule.on_empty(now)
    return waits, polls


@pytest.mark.parametrize("chunk_s", [0.02, 0.04, 0.06, 0.1, 0.2, 1.0])
def test_steady_chunks_are_polled_on_arrival(chunk_s: float) -> None:
    waits, polls = _watch([0.007 + at * chunk_s for at in range(200)], chunk_s)
    steady = waits[20:]
    assert max(steady) <= 2 * ROUND_S
    assert polls <= 200 * (1.5 + chunk_s / MAX_INTERVAL_S)


@given(st.lists(st.floats(0, 0.05), min_size=50, max_size=50))
def test_jitter_costs_few_polls(late: list[float]) -> None:
    chunk_s = 0.1
    arrivals = sorted(at * chunk_s + late_s for at, late_s in enumerate(late))
    waits, polls = _watch(arrivals, chunk_s)
    assert max(waits) <= 0.05 + 2 * ROUND_S
    assert polls <= 50 * 100 / 15 * 0.8


@given(st.lists(st.floats(0, 3), min_size=1, max_size=40), st.floats(0.001, 10))
def test_no_chunk_waits_longer_than_limit(gaps: list[float], lasts_s: float) -> None:
    arrivals, at = [], 0.0
    for gap in gaps:
        at += gap
        arrivals.append(at)
    waits, _ = _watch(arrivals, lasts_s)
    assert max(waits) <= MAX_INTERVAL_S + ROUND_S + 1e-9


def test_paused_stream_is_polled_less_and_less() -> None:
    poll_schedule, now, polls = PollSchedule(0.0), 0.0, []
    poll_schedule.on_entries(0.0, 0.0, 0.1)
    while now < 10:
        now += 0.001
        if poll_schedule.next_at <= now:
            polls.append(now)
            poll_schedule.on_empty(now)
    assert polls[0] == pytest.approx(0.1, abs=0.002)
    gaps = [after - before for before, after in pairwise(polls)]
    assert max(gaps) <= IDLE_INTERVAL_S + 0.002
    assert sum(at < 0.3 for at in polls) > 20
    assert sum(at > 9 for at in polls) <= 21


def test_fast_stream_is_polled_at_once() -> None:
    poll_schedule = PollSchedule(0.0)
    poll_schedule.on_entries(5.0, 5.0, 0.1)
    assert poll_schedule.next_at > 5.0
    poll_schedule.poll_now()
    assert poll_schedule.next_at <= 5.0


def test_clock_offset_comes_from_earliest_arrival() -> None:
    clock = ClockOffset()
    assert clock.to_local(now=100.5, stamp_s=1_000.0) == 100.5
    assert clock.to_local(now=100.6, stamp_s=1_000.4) == pytest.approx(100.6)
    assert clock.to_local(now=100.9, stamp_s=1_000.5) == pytest.approx(100.7)


@pytest.mark.parametrize("step_s", [-3_600.0, -1.0, 1.0, 3_600.0])
def test_clock_offset_follows_clock_change(step_s: float) -> None:
    clock = ClockOffset()
    clock.to_local(now=100.0, stamp_s=1_000.0)
    for now in (110.5, 121.5):
        clock.to_local(now=now, stamp_s=900.0 + now + step_s)
    assert clock.to_local(now=122.0, stamp_s=1_022.0 + step_s) == pytest.approx(122.0)
