"""Loudness of the audio last sent, in any of the six encodings, without decoding all of it.

Loudness is only needed at a turn's start and end, to find where its sound begins and stops. So the
buffer keeps one of every few samples, which costs 1 us a chunk. Levels are computed on demand, in
about 10 us a second of audio. The worker needs no numpy, and stores no audio.

The level of a frame is the mean magnitude of its samples. If magnitudes fit 16 bits, thousands of
them are added at once, as the digits of one large integer. That is five times as fast as adding
them one by one.
"""

import struct
from array import array
from functools import cache, lru_cache
from itertools import accumulate, pairwise
from math import isfinite
from typing import Any, NamedTuple

from schemas.pcm import Encoding, g711_levels

FRAME_MS = 10
FULL_SCALE = 32_767
_PROBES = 10  # minimum samples per frame: they are as loud as all samples are


class _Levels(NamedTuple):
    """Levels of the kept frames from `first` up to `last`."""

    first: int
    last: int
    levels: list[int]


class LevelBuffer:
    """Subsampled audio that was last sent on one socket."""

    __slots__ = (
        "_computed",
        "_encoding",
        "_first",
        "_keep",
        "_kept",
        "_probes",
        "_rest",
        "_stride",
        "_type",
        "frame_bytes",
    )

    def __init__(self, encoding: Encoding, sample_rate: int, keep_ms: int) -> None:
        self._encoding = encoding
        self._type = encoding.type_code.replace("e", "H")  # arrays have no half floats
        self.frame_bytes = frame_bytes(encoding, sample_rate)
        """Size of a frame, in bytes."""
        self._stride = _stride(sample_rate)
        self._probes = self.frame_bytes // encoding.width // self._stride  # of a frame
        self._keep = keep_ms // FRAME_MS * self._probes
        self.restart(0)

    def restart(self, position: int) -> None:
        """Clear the buffer; the next audio begins at session byte `position`."""
        self._kept: array[Any] = array(self._type)
        self._first = position
        self._rest = b""
        self._computed: _Levels | None = None  # the last levels returned, until audio is added

    def add(self, audio: bytes) -> None:
        """Add the next audio, in whole samples."""
        self._computed = None
        if self._rest:
            audio = self._rest + audio
        over = len(audio) % self.frame_bytes
        self._rest = audio[len(audio) - over :]
        whole = audio[: len(audio) - over] if over else audio
        self._kept.extend(array(self._type, whole)[:: self._stride])
        if len(self._kept) > 1.25 * self._keep:
            frames = (len(self._kept) - self._keep) // self._probes
            del self._kept[: frames * self._probes]
            self._first += frames * self.frame_bytes

    def levels(self, start: int, end: int) -> tuple[int, list[int]]:
        """Return the loudness of the session's audio between two bytes, where it is still known.

        Returns the byte at which the first whole 10 ms frame begins, and the mean magnitude of each
        frame, 0 to 32767.
        """
        first = max(0, -(-(start - self._first) // self.frame_bytes))
        last = max(first, (end - self._first) // self.frame_bytes)
        known = self._computed
        if known is not None and first <= known.first and last == known.last:
            levels = self._levels_of(first, known.first) + known.levels  # a longer lookback
        else:
            levels = self._levels_of(first, last)
        self._computed = _Levels(first, last, levels)
        return self._first + first * self.frame_bytes, levels

    def _levels_of(self, first: int, last: int) -> list[int]:
        kept = self._kept[first * self._probes : last * self._probes]
        return frame_levels(kept, self._encoding, self._probes)


def frame_bytes(encoding: Encoding, sample_rate: int) -> int:
    """Bytes of one 10 ms frame."""
    return sample_rate * FRAME_MS // 1000 * encoding.width


@cache
def _stride(sample_rate: int) -> int:
    """Return the distance between kept samples; every frame has the same number of them."""
    samples = sample_rate * FRAME_MS // 1000
    return max(step for step in range(1, samples // _PROBES + 1) if samples % step == 0)


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
            means = [int((after - before) * scale) // count for before, after in pairwise(running)]
            return [min(FULL_SCALE, mean) for mean in means]
    return [total // count for total in totals]  # digits of 16 bits: at most `FULL_SCALE` each


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
    totals, summed = pairs, 1  # every digit of `totals` is the sum of so many pairs
    while 2 * summed <= count // 2:
        totals += totals >> (32 * summed)
        summed *= 2
    for at in range(summed, count // 2):
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
