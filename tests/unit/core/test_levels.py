"""Loudness, against an independent codec and for any bytes of a producer."""

import math
import struct
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.audio import Encoding
from tests.unit.core.loudness import loudness
from worker.core.levels import FULL_SCALE, LevelBuffer, frame_bytes, frame_levels
from worker.local.emulator.engines.base import AudioFormat
from worker.local.pcm import PcmDecoder, encode

RATES = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000]
ENCODINGS = list(Encoding)


def _tone(amplitude: float, ms: float, rate: int, hz: float = 437.0) -> np.ndarray:
    time = np.arange(round(rate * ms / 1000)) / rate
    return (amplitude * np.sin(2 * math.pi * hz * time)).astype(np.float32)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_silence_has_lowest_level(encoding: Encoding, rate: int) -> None:
    levels = loudness(encoding.silence * rate, encoding, rate)
    assert len(levels) == rate // (rate * 10 // 1000)
    assert set(levels) <= {0, 8}  # A-law has no zero


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("amplitude", [0.01, 0.1, 0.9])
def test_tone_has_same_level_in_every_encoding(
    encoding: Encoding, rate: int, amplitude: float
) -> None:
    audio = encode(_tone(amplitude, 500, rate), encoding.value)
    levels = loudness(audio, encoding, rate)
    mean = amplitude * 32_768 * 2 / math.pi
    assert sum(levels) / len(levels) == pytest.approx(mean, rel=0.05)
    assert min(levels) > mean * 0.6
    assert max(levels) < mean * 1.4


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_level_locates_sound(encoding: Encoding) -> None:
    rate = 16_000
    samples = np.concatenate([np.zeros(1_600), _tone(0.3, 50, rate), np.zeros(1_600)])
    levels = loudness(encode(samples.astype(np.float32), encoding.value), encoding, rate)
    assert [at for at, level in enumerate(levels) if level > 1_000] == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("encoding", [Encoding.PCM_MULAW, Encoding.PCM_ALAW])
def test_companded_codes_have_their_decoded_level(encoding: Encoding) -> None:
    decoder = PcmDecoder(AudioFormat(encoding.value, 8_000))
    for code in range(256):
        audio = bytes([code]) * 80
        level = float(abs(decoder.decode(audio)[0])) * 32_768
        assert loudness(audio, encoding, 8_000) == [min(32_767, int(level))]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_partial_frame_has_no_level(encoding: Encoding) -> None:
    size = frame_bytes(encoding, 8_000)
    assert size == 80 * encoding.width
    assert loudness(b"", encoding, 8_000) == []
    assert loudness(encoding.silence * 79, encoding, 8_000) == []
    assert len(loudness(encoding.silence * 159, encoding, 8_000)) == 1


@pytest.mark.parametrize(
    ("encoding", "sample"),
    [
        (Encoding.PCM_S16LE, struct.pack("<h", -(2**15))),
        (Encoding.PCM_S32LE, struct.pack("<i", -(2**31))),
        (Encoding.PCM_F32LE, struct.pack("<f", 1e30)),
        (Encoding.PCM_F32LE, struct.pack("<f", -1.0)),
        (Encoding.PCM_F16LE, struct.pack("<e", 60_000.0)),
    ],
)
def test_level_is_at_most_full_scale(encoding: Encoding, sample: bytes) -> None:
    assert set(loudness(sample * 480, encoding, 16_000)) == {32_767}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("encoding", "form"), [(Encoding.PCM_F32LE, "<f"), (Encoding.PCM_F16LE, "<e")]
)
def test_nan_samples_are_silence(encoding: Encoding, form: str, value: float) -> None:
    sample, half = struct.pack(form, value), struct.pack(form, 0.5)
    assert loudness(sample * 160 + half * 160, encoding, 16_000) == [0, 16_384]


def test_huge_sample_hides_no_later_frame() -> None:
    absurd, quiet = struct.pack("<f", 1e30), struct.pack("<f", 0.001)
    assert loudness(absurd * 160 + quiet * 320, Encoding.PCM_F32LE, 16_000) == [32_767, 32, 32]


@given(st.sampled_from(ENCODINGS), st.sampled_from([*RATES, 8_009, 192_000]), st.binary())
def test_any_bytes_have_a_level(encoding: Encoding, rate: int, piece: bytes) -> None:
    audio = (piece or b"\0") * (4 * frame_bytes(encoding, rate) // max(1, len(piece)) + 1)
    levels = loudness(audio, encoding, rate)
    assert len(levels) == len(audio) // frame_bytes(encoding, rate)
    assert all(0 <= level <= 32_767 for level in levels)


@given(
    st.sampled_from(ENCODINGS),
    st.sampled_from(RATES),
    st.lists(st.integers(0, 400), max_size=30),
    st.integers(0, 1_000),
    st.integers(0, 3_000),
    st.integers(0, 3_000),
)
def test_chunk_size_does_not_change_levels(
    encoding: Encoding, rate: int, sizes: list[int], position: int, start: int, length: int
) -> None:
    width, frame = encoding.width, frame_bytes(encoding, rate)
    audio = bytes(at * 37 % 251 for at in range(sum(sizes) * width))
    sound = LevelBuffer(encoding, rate, keep_ms=100)
    sound.add(b"\0" * width)
    sound.restart(position * width)
    at = 0
    for size in sizes:
        sound.add(audio[at : at + size * width])
        at += size * width
    everything = loudness(audio, encoding, rate)
    begin = (position + start) * width
    first, levels = sound.levels(begin, begin + length * width)
    assert (first - position * width) % frame == 0
    assert first >= begin
    assert first + len(levels) * frame <= max(begin + length * width, first)
    nth = (first - position * width) // frame
    assert levels == everything[nth : nth + len(levels)]
    if first > position * width:  # a longer lookback, of which these levels are the end
        earlier, longer = sound.levels(first - frame, begin + length * width)
        nth = (earlier - position * width) // frame
        assert longer == everything[nth : nth + len(longer)]
        assert longer[-len(levels) or len(longer) :] == levels
    sound.add(audio[: 2 * frame])
    moved, anew = sound.levels(begin, (position + sum(sizes)) * width + 2 * frame)
    nth = (moved - position * width) // frame
    everything = loudness(audio + audio[: 2 * frame], encoding, rate)
    assert anew == everything[nth : nth + len(anew)]


def test_only_recent_levels_are_kept() -> None:
    sound = LevelBuffer(Encoding.PCM_S16LE, 8_000, keep_ms=1_000)
    for _ in range(100):
        sound.add(bytes(1_600))  # 100 ms
    start, levels = sound.levels(0, 160_000)
    assert 100 <= len(levels) <= 126
    assert start == 160_000 - len(levels) * 160


def test_levels_follow_added_audio() -> None:
    sound = LevelBuffer(Encoding.PCM_S16LE, 8_000, keep_ms=100)
    sound.add(bytes(10 * 160))
    assert sound.levels(0, 10 * 160) == (0, [0] * 10)
    sound.add(b"\x00\x10" * (3 * 80))  # and the first three frames are dropped
    assert sound.levels(0, 13 * 160) == (3 * 160, [0] * 7 + [4_096] * 3)


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
