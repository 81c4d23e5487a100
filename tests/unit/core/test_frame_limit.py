"""The maximum frame size, learned from refusals."""

from hypothesis import given
from hypothesis import strategies as st

from worker.core.frame_limit import MIN_FRAME_BYTES, FrameLimit


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
        assert limit.max_bytes % 8 == 0
    assert not again
    assert limit.max_bytes >= MIN_FRAME_BYTES
