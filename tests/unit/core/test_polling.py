"""When a stream is polled: soon after its chunks arrive, and rarely in between."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.polling import (
    IDLE_INTERVAL_S,
    MAX_INTERVAL_S,
    ClockOffset,
    PollQueue,
    PollSchedule,
)

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


class _Stream:
    """A stream in a queue."""

    def __init__(self, next_at: float) -> None:
        self.poll_schedule = PollSchedule(next_at)


@pytest.mark.parametrize(
    ("next_at", "now", "due"),
    [
        (0.0, 5.0, True),
        (4.0, 5.0, True),
        (4.999, 5.0, True),
        (5.0, 5.0, True),
        (5.001, 5.002, True),
        (5.002, 5.001, False),
        (5.1, 5.0, False),
        (60.0, 5.0, False),
    ],
)
def test_stream_is_due_from_its_time_on(next_at: float, now: float, due: bool) -> None:
    queue, stream = PollQueue[_Stream](), _Stream(next_at)
    queue.put(stream)
    assert queue.take_due(now) == ([stream] if due else [])
    assert queue.take_due(100.0) == ([] if due else [stream])
    assert queue.take_due(100.0) == []


def test_stream_is_taken_once_however_often_it_is_put() -> None:
    queue, stream = PollQueue[_Stream](), _Stream(5.05)
    queue.put(stream)
    queue.put(stream)
    stream.poll_schedule.poll_now()
    queue.put(stream)
    assert queue.take_due(5.0) == [stream]
    assert queue.take_due(6.0) == []


def test_queue_without_a_take_does_not_grow() -> None:
    """With few streams the reader looks at all of them, not at the queue."""
    queue, streams = PollQueue[_Stream](), [_Stream(0.0) for _ in range(3)]
    for number in range(1_000):
        for stream in streams:
            stream.poll_schedule.next_at = number / 10
            queue.put(stream)
    assert len(queue._slots) == 1
    for stream in streams:
        queue.remove(stream)
    assert not queue._slots


def test_overdue_streams_are_taken_in_the_order_put() -> None:
    queue, streams = PollQueue[_Stream](), [_Stream(0.0) for _ in range(5)]
    for stream in streams:
        queue.put(stream)
    assert queue.take_due(1.0) == streams


_Step = st.tuples(
    st.sampled_from(["put", "poll_now", "remove", "wait"]),
    st.integers(0, 7),
    st.floats(0, 0.12),
)


@given(st.lists(_Step, max_size=60))
def test_queue_equals_a_look_at_every_stream(steps: list[tuple[str, int, float]]) -> None:
    queue, now = PollQueue[_Stream](), 1_000.0
    streams = [_Stream(now) for _ in range(8)]
    queued: set[_Stream] = set()
    for action, index, amount_s in steps:
        stream = streams[index]
        if action == "wait":
            now += amount_s
            due = queue.take_due(now)
            assert len(due) == len({*due})
            assert {*due} == {each for each in queued if each.poll_schedule.next_at <= now}
            queued -= {*due}
        elif action == "remove":
            queue.remove(stream)
            queued.discard(stream)
        else:
            stream.poll_schedule.next_at = now + amount_s
            if action == "poll_now":
                stream.poll_schedule.poll_now()
            queue.put(stream)
            queued.add(stream)
    assert {*queue.take_due(now + 1.0)} == queued


@given(st.lists(st.floats(0.0, 0.1), min_size=1, max_size=30))
def test_no_stream_is_polled_later_than_one_interval(delays: list[float]) -> None:
    queue, now = PollQueue[_Stream](), 1_000.0
    for delay_s in delays:
        queue.put(_Stream(now + delay_s))
    taken = 0
    while taken < len(delays):
        now += ROUND_S
        for stream in queue.take_due(now):
            taken += 1
            assert 0 <= now - stream.poll_schedule.next_at <= ROUND_S + 1e-9
