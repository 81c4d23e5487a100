"""The six encodings, against known values of the G.711 tables and round trips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.pcm import Encoding
from worker.local.emulator.engines.base import AudioFormat
from worker.local.pcm import PcmDecoder, encode, silence

every_encoding = pytest.mark.parametrize("encoding", sorted(Encoding))


def decoder(encoding: str) -> PcmDecoder:
    return PcmDecoder(AudioFormat(encoding, 8000))


@pytest.mark.parametrize(
    ("encoding", "code", "level"),
    [
        ("pcm_mulaw", 0x00, -32124),
        ("pcm_mulaw", 0x7F, 0),
        ("pcm_mulaw", 0x80, 32124),
        ("pcm_mulaw", 0x8F, 16764),
        ("pcm_mulaw", 0xFE, 8),
        ("pcm_mulaw", 0xFF, 0),
        ("pcm_alaw", 0x00, -5504),
        ("pcm_alaw", 0x2A, -32256),
        ("pcm_alaw", 0x55, -8),
        ("pcm_alaw", 0xAA, 32256),
        ("pcm_alaw", 0xD5, 8),
        ("pcm_alaw", 0xFF, 848),
    ],
)
def test_companded_codes_have_their_g711_level(encoding: str, code: int, level: int) -> None:
    assert decoder(encoding).decode(bytes([code])) * 32768 == level


@pytest.mark.parametrize("encoding", ["pcm_mulaw", "pcm_alaw"])
def test_every_companded_code_survives_a_round_trip(encoding: str) -> None:
    codes = bytes(set(range(256)) - ({0x7F} if encoding == "pcm_mulaw" else set()))  # 0x7F is -0
    assert encode(decoder(encoding).decode(codes), encoding) == codes


@every_encoding
def test_silence_is_quietest_sample(encoding: str) -> None:
    quiet = decoder(encoding).decode(silence(5, encoding))
    assert len(quiet) == 5
    assert np.all(np.abs(quiet) <= 8 / 32768)
    assert encode(np.zeros(5, np.float32), encoding) == silence(5, encoding)


@every_encoding
@given(st.lists(st.floats(-1, 1, width=32), max_size=50))
def test_round_trip_stays_within_encoding_step(encoding: str, values: list[float]) -> None:
    samples = np.array(values, np.float32)
    back = decoder(encoding).decode(encode(samples, encoding))
    # G.711 keeps four mantissa bits: half a step is at most 1/33 of the level, 8/32768 near zero.
    step = 1 / 33 if encoding in {"pcm_mulaw", "pcm_alaw"} else 1 / 1024
    assert np.all(np.abs(back - samples) <= np.abs(samples) * step + 9 / 32768)


@every_encoding
@given(st.binary(max_size=200), st.data())
def test_decoding_is_independent_of_chunking(
    encoding: str, audio: bytes, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(audio)), max_size=5)))
    pieces = [audio[a:b] for a, b in zip([0, *cuts], [*cuts, len(audio)], strict=True)]
    whole = decoder(encoding).decode(audio)
    one = decoder(encoding)
    assert np.array_equal(np.concatenate([one.decode(piece) for piece in pieces]), whole)
    assert len(whole) == len(audio) // Encoding(encoding).width
    assert np.all(np.abs(whole) <= 1)


def test_out_of_range_floats_are_clipped_and_nan_is_silence() -> None:
    wild = np.array([np.nan, np.inf, -np.inf, 3.0, -3.0, 0.5], "<f4").tobytes()
    assert decoder("pcm_f32le").decode(wild).tolist() == [0.0, 1.0, -1.0, 1.0, -1.0, 0.5]
    assert encode(np.array([3.0, -3.0], np.float32), "pcm_s16le") == b"\xff\x7f\x00\x80"
