"""Samples of other encodings, as 16 bits."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.pcm import Encoding
from worker.stt.conversion import to_s16


def _converted(samples: list[float], encoding: Encoding) -> list[int]:
    audio = struct.pack(f"<{len(samples)}{encoding.type_code}", *samples)
    return list(struct.unpack(f"<{len(samples)}h", to_s16(audio, encoding)))


@pytest.mark.parametrize("encoding", [Encoding.PCM_F16LE, Encoding.PCM_F32LE])
def test_samples_keep_their_level(encoding: Encoding) -> None:
    assert _converted([0.0, 0.5, -0.5, -1.0, 0.25], encoding) == [
        0,
        16_384,
        -16_384,
        -32_768,
        8_192,
    ]


@pytest.mark.parametrize("encoding", [Encoding.PCM_F16LE, Encoding.PCM_F32LE])
def test_samples_above_full_scale_are_clipped(encoding: Encoding) -> None:
    samples = [1.0, 2.0, -2.0, math.inf, -math.inf, math.nan, 0.5]
    assert _converted(samples, encoding) == [32_767, 32_767, -32_768, 32_767, -32_768, 0, 16_384]


@given(st.binary(max_size=400), st.sampled_from([Encoding.PCM_F16LE, Encoding.PCM_F32LE]))
def test_any_bytes_give_as_many_samples(audio: bytes, encoding: Encoding) -> None:
    audio = audio[: len(audio) // encoding.width * encoding.width]
    assert len(to_s16(audio, encoding)) == len(audio) // encoding.width * 2
