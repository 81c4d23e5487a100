"""Pacing: never above the allowed rate, never slower than necessary. Message sizes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.pcm import MAX_SAMPLE_BYTES
from worker.core.send_limits import MIN_FRAME_BYTES, FrameLimit, Pacer


def test_new_connection_gets_burst_then_speed() -> None:
    pacer = Pacer(1.5, burst_ms=300)
    pacer.restart(100.0)
    assert pacer.allowance_ms(100.0) == 300
    pacer.spend(300)
    assert pacer.allowance_ms(100.0) == 0
    assert math.isclose(pacer.allowance_ms(100.1), 150)
    assert math.isclose(pacer.allowance_ms(100.2), 300)
    assert math.isclose(pacer.allowance_ms(200.0), 300)  # unused time gives no credit


def test_excess_is_repaid_by_waiting() -> None:
    pacer = Pacer(1.0, burst_ms=100)
    pacer.restart(0.0)
    pacer.spend(250)
    assert math.isclose(pacer.allowance_ms(0.1), -50)
    assert math.isclose(pacer.allowance_ms(0.2), 50)


def test_new_connection_resets_debt_and_credit() -> None:
    pacer = Pacer(1.0, burst_ms=100)
    pacer.restart(0.0)
    pacer.spend(1_000)
    pacer.restart(0.5)
    assert pacer.allowance_ms(0.5) == 100


def test_pacing_without_speed_holds_nothing_back() -> None:
    pacer = Pacer(0)
    pacer.restart(0.0)
    for _ in range(10):
        assert pacer.allowance_ms(0.0) == math.inf
        pacer.spend(10_000)


@given(
    speed=st.floats(0.5, 4.0),
    burst_ms=st.floats(0, 500),
    chunk_ms=st.sampled_from([10, 20, 100, 200]),
    waits=st.lists(st.floats(0, 0.5), min_size=1, max_size=60),
)
def test_no_period_exceeds_burst_and_speed(
    speed: float, burst_ms: float, chunk_ms: int, waits: list[float]
) -> None:
    pacer = Pacer(speed, burst_ms)
    now = 7.0
    pacer.restart(now)
    sent: list[tuple[float, int]] = []
    for wait in waits:
        now += wait
        while pacer.allowance_ms(now) >= chunk_ms:
            pacer.spend(chunk_ms)
            sent.append((now, chunk_ms))
        assert pacer.allowance_ms(now) < chunk_ms, "nothing that may go is held back"
    for first, (begin, _) in enumerate(sent):
        total = 0
        for at, ms in sent[first:]:
            total += ms
            assert total <= burst_ms + speed * (at - begin) * 1000 + 1e-6


@given(st.lists(st.sampled_from([20, 40, 100]), max_size=100))
def test_live_audio_is_never_delayed(chunks: list[int]) -> None:
    pacer = Pacer(1.0, burst_ms=100)
    pacer.restart(0.0)
    now = 0.0
    for ms in chunks:
        now += ms / 1000
        assert pacer.allowance_ms(now) >= ms - 1e-6
        pacer.spend(ms)


def test_speed_recovers_after_one_refusal() -> None:
    pacer = Pacer(2.0, burst_ms=0.0)
    pacer.restart(0.0)
    pacer.limit_to_real_time()
    assert not pacer.is_fast
    pacer.resume_speed()
    assert pacer.is_fast


def test_second_refusal_lowers_speed_for_good() -> None:
    pacer = Pacer(1.5)
    for fast in (True, False):
        pacer.limit_to_real_time()
        pacer.resume_speed()
        assert pacer.is_fast == fast


def test_limit_is_half_of_refused_size() -> None:
    limit = FrameLimit()
    assert limit.refused(6_400)
    assert limit.max_bytes == 3_200
    assert limit.refused(3_200)
    assert limit.max_bytes == 1_600


def test_simultaneous_refusals_halve_limit_once() -> None:
    limit = FrameLimit()
    assert limit.refused(6_400)
    assert limit.refused(6_400)
    assert limit.max_bytes == 3_200


def test_refusal_before_audio_keeps_limit() -> None:
    limit = FrameLimit()
    before = limit.max_bytes
    assert not limit.refused(0)
    assert limit.max_bytes == before


@given(st.integers(1, 2**20))
def test_limit_has_minimum_of_whole_samples(size: int) -> None:
    limit = FrameLimit()
    for _ in range(25):
        again = limit.refused(size)
        if not again:
            break
        size = min(size, limit.max_bytes)
        assert limit.max_bytes % MAX_SAMPLE_BYTES == 0
    assert not again
    assert limit.max_bytes >= MIN_FRAME_BYTES


@pytest.mark.parametrize(
    ("speed", "max_speed", "expected"),
    [(1.5, 0.0, 1.5), (1.5, 1.25, 1.25), (1.0, 1.25, 1.0), (0.0, 1.25, 1.25), (2.0, 0.0, 2.0)],
)
def test_pace_is_at_most_what_the_provider_bears(
    speed: float, max_speed: float, expected: float
) -> None:
    pacer = Pacer(speed, burst_ms=100.0)
    pacer.restart(0.0, max_speed)
    pacer.spend(5_100.0)
    assert pacer.allowance_ms(1.0) == pytest.approx(-5_000.0 + 1_000.0 * expected)


def test_pace_that_one_provider_rejects_is_tried_with_the_next() -> None:
    pacer = Pacer(1.5)
    pacer.restart(0.0, 0.0)
    pacer.limit_to_real_time()
    pacer.restart(1.0, 0.0)
    assert not pacer.is_fast
    pacer.restart(2.0, 1.25)
    assert pacer.is_fast
