"""Levels of frames, against plain arithmetic."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.audio import Encoding
from worker.core.loudness import FULL_SCALE, frame_levels
from worker.local.emulator.engines.base import AudioFormat
from worker.local.pcm import PcmDecoder

COUNTS = st.integers(1, 24)
SAMPLES = st.lists(st.sampled_from([-32_768, -1, 0, 1, 32_767]) | st.integers(-32_768, 32_767))


@given(SAMPLES, COUNTS)
def test_level_is_mean_magnitude_of_frame(samples: list[int], count: int) -> None:
    levels = frame_levels(array("h", samples), Encoding.PCM_S16LE, count)
    frames = [samples[at : at + count] for at in range(0, len(samples) - count + 1, count)]
    means = [min(FULL_SCALE, sum(map(abs, frame)) / count) for frame in frames]
    assert len(levels) == len(frames)
    # In the fast path, a negative sample counts one less.
    assert all(mean - 2 < level <= mean for level, mean in zip(levels, means, strict=True))


@pytest.mark.parametrize("encoding", [Encoding.PCM_MULAW, Encoding.PCM_ALAW])
@given(st.binary(max_size=400), st.sampled_from([2, 8, 10, 22]))
def test_companded_level_is_that_of_decoded_samples(
    encoding: Encoding, codes: bytes, count: int
) -> None:
    levels = frame_levels(array("B", codes), encoding, count)
    decoded = PcmDecoder(AudioFormat(encoding.value, 8_000)).decode(codes)
    frames = [decoded[at : at + count] for at in range(0, len(codes) - count + 1, count)]
    means = [min(FULL_SCALE, float(abs(frame).mean()) * 32_768) for frame in frames]
    assert levels == pytest.approx(means, abs=1.01)


@pytest.mark.parametrize("encoding", [Encoding.PCM_S16LE, Encoding.PCM_MULAW, Encoding.PCM_ALAW])
@given(st.binary(max_size=600))
def test_even_and_odd_sample_counts_agree(encoding: Encoding, data: bytes) -> None:
    kind = "h" if encoding is Encoding.PCM_S16LE else "B"
    samples = array(kind, data[: len(data) // 6 * 6])
    thrice = array(kind, [sample for sample in samples for _ in range(3)])
    even = frame_levels(samples, encoding, 2)
    odd = frame_levels(thrice, encoding, 3)
    pairs = [(a + b) / 2 for a, b in zip(odd[::2], odd[1::2], strict=False)]
    assert even == pytest.approx(pairs, abs=2.01)
