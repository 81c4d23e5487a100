"""The size of messages, learned from refusals."""

from hypothesis import given
from hypothesis import strategies as st

from worker.core.frame_limit import MIN_FRAME_BYTES, FrameLimit


def test_the_limit_is_half_of_what_was_refused() -> None:
    limit = FrameLimit()
    assert limit.refused(6_400)
    assert limit.max_bytes == 3_200
    assert limit.refused(3_200)
    assert limit.max_bytes == 1_600


def test_two_sessions_refused_at_once_halve_it_once() -> None:
    limit = FrameLimit()
    assert limit.refused(6_400)
    assert limit.refused(6_400)
    assert limit.max_bytes == 3_200


def test_a_refusal_before_any_audio_changes_nothing() -> None:
    limit = FrameLimit()
    before = limit.max_bytes
    assert not limit.refused(0)
    assert limit.max_bytes == before


@given(st.integers(1, 2**20))
def test_it_falls_to_a_minimum_of_whole_samples(size: int) -> None:
    limit = FrameLimit()
    for _ in range(25):
        again = limit.refused(size)
        if not again:
            break
        size = min(size, limit.max_bytes)
        assert limit.max_bytes % 8 == 0
    assert not again
    assert limit.max_bytes >= MIN_FRAME_BYTES
