"""Conversion of raw mono audio in the six protocol encodings to and from floats in [-1, 1].

`pcm_mulaw` and `pcm_alaw` follow ITU-T G.711 on the 16 bit scale; the others are little endian
numbers. Integer full scale is 2**(bits - 1): -1.0 is exact, +1.0 is clipped by one step.
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.local.emulator.engines.base import AudioFormat


class _Encoding(msgspec.Struct, frozen=True):
    dtype: str
    silence: bytes  # one silent sample


ENCODINGS: Final = {
    "pcm_s16le": _Encoding("<i2", b"\0\0"),
    "pcm_s32le": _Encoding("<i4", b"\0\0\0\0"),
    "pcm_f16le": _Encoding("<f2", b"\0\0"),
    "pcm_f32le": _Encoding("<f4", b"\0\0\0\0"),
    "pcm_mulaw": _Encoding("u1", b"\xff"),
    "pcm_alaw": _Encoding(
        "u1", b"\xd5"
    ),  # G.711 A-law has no zero: +8 of 32768 is its lowest level
}


def sample_width(encoding: str) -> int:
    """Return the bytes in one sample. Raises KeyError for an encoding not in `ENCODINGS`."""
    return len(ENCODINGS[encoding].silence)


def silence(samples: int, encoding: str) -> bytes:
    """Return `samples` samples of silence."""
    return ENCODINGS[encoding].silence * samples


def _mulaw_levels() -> NDArray[np.float64]:
    code = ~np.arange(256, dtype=np.uint8)
    step = (code & 0x0F).astype(np.int32) * 8 + 0x84
    level = (step << ((code & 0x70) >> 4)) - 0x84
    return np.where(code & 0x80, -level, level).astype(np.float64)


def _alaw_levels() -> NDArray[np.float64]:
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    segment = ((code & 0x70) >> 4).astype(np.int32)
    step = (code & 0x0F).astype(np.int32) * 16 + 8
    level = np.where(segment == 0, step, (step + 0x100) << np.maximum(segment - 1, 0))
    return np.where(code & 0x80, level, -level).astype(np.float64)


class _Companding:
    """Tables of a G.711 law: the level of each code, the nearest code of each 16 bit level."""

    def __init__(self, levels: NDArray[np.float64]) -> None:
        self.expand = (levels / 32768).astype(np.float32)
        # Search from the top, to select the positive one (0xFF) of mu-law's two zeros.
        ascending, from_top = np.unique(levels[::-1], return_index=True)
        bounds = (ascending[1:] + ascending[:-1]) / 2
        nearest = np.searchsorted(bounds, np.arange(-32768, 32768), side="right")
        self.compress = (255 - from_top[nearest]).astype(np.uint8)


_LAWS: Final = {
    "pcm_mulaw": _Companding(_mulaw_levels()),
    "pcm_alaw": _Companding(_alaw_levels()),
}


class PcmDecoder:
    """Decodes one connection's bytes; a sample cut by a chunk boundary is carried over.

    Raises KeyError for an encoding not in `ENCODINGS`.
    """

    def __init__(self, audio: AudioFormat) -> None:
        self._dtype: np.dtype[np.generic] = np.dtype(ENCODINGS[audio.encoding].dtype)
        self._law = _LAWS.get(audio.encoding)
        self._rest = b""

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """Return the complete samples, in [-1, 1] at the source rate.

        Float encodings are clipped to that range, and NaN becomes silence.
        """
        if self._rest:
            data = self._rest + data
        cut = len(data) - len(data) % self._dtype.itemsize
        self._rest = data[cut:]
        raw = np.frombuffer(data, self._dtype, count=cut // self._dtype.itemsize)
        if self._law is not None:
            return self._law.expand[raw.view(np.uint8)]
        samples = raw.astype(np.float32)
        if self._dtype.kind == "i":
            samples *= np.float32(0.5 ** (8 * self._dtype.itemsize - 1))
            return samples
        np.nan_to_num(samples, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
        return np.clip(samples, -1.0, 1.0, out=samples)


def encode(samples: NDArray[np.float32], encoding: str) -> bytes:
    """Encode samples, clipped to [-1, 1].

    Raises KeyError for an encoding not in `ENCODINGS`.
    """
    dtype = np.dtype(ENCODINGS[encoding].dtype)
    clipped = np.clip(samples, -1.0, 1.0)
    if dtype.kind == "f":
        return clipped.astype(dtype).tobytes()
    law = _LAWS.get(encoding)
    full = 32768.0 if law is not None else 0.5 * 2.0 ** (8 * dtype.itemsize)
    levels = np.rint(np.minimum(clipped.astype(np.float64) * full, full - 1))
    if law is not None:
        return law.compress[levels.astype(np.int64) + 32768].tobytes()
    return levels.astype(dtype).tobytes()
