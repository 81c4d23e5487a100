"""Conversion of raw mono audio, see `schemas.pcm`, to and from floats in [-1, 1].

Integer full scale is 2**(bits - 1): -1.0 is exact, +1.0 is clipped by one step.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from schemas.pcm import Encoding, g711_levels
from worker.local.emulator.engines.base import AudioFormat

_LAWS = (Encoding.PCM_MULAW, Encoding.PCM_ALAW)


def silence(samples: int, encoding: str) -> bytes:
    """Return `samples` samples of silence."""
    return Encoding(encoding).silence * samples


class PcmDecoder:
    """Decodes one connection's bytes; a sample cut by a chunk boundary is carried over.

    Raises ValueError for an unknown encoding.
    """

    def __init__(self, audio: AudioFormat) -> None:
        encoding = Encoding(audio.encoding)
        self._dtype = _dtype(encoding)
        self._expand = _expand(encoding) if encoding in _LAWS else None
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
        if self._expand is not None:
            return self._expand[raw]
        samples = raw.astype(np.float32)
        if self._dtype.kind == "i":
            samples *= np.float32(0.5 ** (8 * self._dtype.itemsize - 1))
            return samples
        np.nan_to_num(samples, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
        return np.clip(samples, -1.0, 1.0, out=samples)


def encode(samples: NDArray[np.float32], encoding: str) -> bytes:
    """Encode samples, clipped to [-1, 1]. Raises ValueError for an unknown encoding."""
    kind = Encoding(encoding)
    dtype = np.dtype(np.int16) if kind in _LAWS else _dtype(kind)
    clipped = np.clip(samples, -1.0, 1.0)
    if dtype.kind == "f":
        return clipped.astype(dtype).tobytes()
    full = 0.5 * 2.0 ** (8 * dtype.itemsize)
    levels = np.rint(np.minimum(clipped.astype(np.float64) * full, full - 1))
    if kind in _LAWS:
        return _compress(kind)[levels.astype(np.int64) + 32768].tobytes()
    return levels.astype(dtype).tobytes()


def _dtype(encoding: Encoding) -> np.dtype[np.generic]:
    return np.dtype(f"<{encoding.type_code}")


@cache
def _expand(law: Encoding) -> NDArray[np.float32]:
    """Return the level of each code."""
    return (np.array(g711_levels(law)) / 32768).astype(np.float32)


@cache
def _compress(law: Encoding) -> NDArray[np.uint8]:
    """Return the nearest code of each level of 16 bits."""
    # Search from the top, to select the positive one (0xFF) of mu-law's two zeros.
    ascending, from_top = np.unique(g711_levels(law)[::-1], return_index=True)
    bounds = (ascending[1:] + ascending[:-1]) / 2
    nearest = np.searchsorted(bounds, np.arange(-32768, 32768), side="right")
    return (255 - from_top[nearest]).astype(np.uint8)
