"""Loudness of audio frames: the mean magnitude of their samples, in any of the six encodings.

If magnitudes fit 16 bits, thousands of them are added at once, as the digits of one large integer.
That is five times as fast as adding them one by one, and needs no numpy.
"""

import struct
from array import array
from functools import lru_cache
from itertools import accumulate, pairwise
from math import isfinite
from typing import Any

from schemas.pcm import Encoding, g711_levels

FULL_SCALE = 32_767

_MULAW = tuple(map(abs, g711_levels(Encoding.PCM_MULAW)))
_ALAW = tuple(map(abs, g711_levels(Encoding.PCM_ALAW)))
_SCALE = {Encoding.PCM_S32LE: 2.0**-16, Encoding.PCM_F16LE: 32_768.0, Encoding.PCM_F32LE: 32_768.0}


def _translations(magnitudes: tuple[int, ...]) -> tuple[bytes, bytes]:
    """Return the tables that map codes to the low and the high bytes of their magnitudes."""
    return bytes(value & 0xFF for value in magnitudes), bytes(value >> 8 for value in magnitudes)


_LAWS = {
    Encoding.PCM_MULAW: _translations(_MULAW),
    Encoding.PCM_ALAW: _translations(_ALAW),
}


def frame_levels(samples: "array[Any]", encoding: Encoding, count: int) -> list[int]:
    """Return the level, 0 to 32767, of every `count` samples; an incomplete frame is ignored.

    The array has the encoding's own numbers: floats, integers, mu-law or A-law codes.
    """
    frames = len(samples) // count
    samples = samples[: frames * count]
    match encoding:
        case Encoding.PCM_S16LE if count % 2 == 0:
            totals = _totals(_unsigned(samples), frames, count)
        case Encoding.PCM_MULAW | Encoding.PCM_ALAW if count % 2 == 0:
            totals = _totals(_decoded(samples, *_LAWS[encoding]), frames, count)
        case _:
            running = [0, *accumulate(_magnitudes(samples, encoding))][::count]
            scale = _SCALE.get(encoding, 1.0)
            totals = [int((after - before) * scale) for before, after in pairwise(running)]
    return [min(FULL_SCALE, total // count) for total in totals]


def _unsigned(samples: "array[Any]") -> int:
    """Return the magnitudes of 16-bit samples as digits; a negative one is one too small."""
    digits = int.from_bytes(samples.tobytes(), "little")
    negative = (digits >> 15) & _digits(b"\x01\x00", len(samples))
    return digits ^ ((negative << 16) - negative)  # inverts all bits of negative samples


def _decoded(codes: "array[Any]", low: bytes, high: bytes) -> int:
    """Return the magnitudes of mu-law or A-law codes, as 16-bit digits."""
    written = bytearray(2 * len(codes))
    written[0::2] = codes.tobytes().translate(low)
    written[1::2] = codes.tobytes().translate(high)
    return int.from_bytes(written, "little")


def _totals(digits: int, frames: int, count: int) -> list[int]:
    """Sum the 16-bit digits of each frame; `count`, their number per frame, is even."""
    size = frames * count // 2
    low = _digits(b"\xff\xff\x00\x00", size)
    pairs = (digits & low) + ((digits >> 16) & low)  # digits of 32 bits, which hold any total
    totals = pairs
    for at in range(1, count // 2):
        totals += pairs >> (32 * at)
    return memoryview(totals.to_bytes(4 * size, "little")).cast("I")[:: count // 2].tolist()


@lru_cache(maxsize=128)
def _digits(pattern: bytes, count: int) -> int:
    return int.from_bytes(pattern * count, "little")


def _magnitudes(samples: "array[Any]", encoding: Encoding) -> list[float]:
    """Return the magnitudes of samples, on the encoding's own scale."""
    match encoding:
        case Encoding.PCM_MULAW:
            return [_MULAW[code] for code in samples]
        case Encoding.PCM_ALAW:
            return [_ALAW[code] for code in samples]
        case Encoding.PCM_S16LE | Encoding.PCM_S32LE:
            return list(map(abs, samples))
        case Encoding.PCM_F32LE:
            return _sane(list(map(abs, samples)))
        case Encoding.PCM_F16LE:
            halves = struct.unpack(f"<{len(samples)}e", samples.tobytes())
            return _sane(list(map(abs, halves)))


def _sane(magnitudes: list[float]) -> list[float]:
    """Replace NaN and infinity, which a producer may send, by 0, and clip at full scale."""
    if sum(magnitudes) <= len(magnitudes):
        return magnitudes
    return [min(value, 1.0) if isfinite(value) else 0.0 for value in magnitudes]
