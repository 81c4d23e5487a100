"""How loud audio is, in any of the six encodings, without decoding all of it.

Only a turn's start and end ask (where does its sound begin and stop?). So every few samples are
kept of what was sent last, which costs a chunk 1 us, and looked at when the time comes, 0.1 ms a
second of audio in plain Python: the worker needs no numpy, and keeps no audio.
"""

import struct
from array import array
from functools import cache
from itertools import accumulate, pairwise
from math import isfinite
from typing import Any

from schemas.audio import Encoding

FRAME_MS = 10
_PROBES = 10  # samples looked at per frame, at least: they are as loud as all are


def _mulaw(byte: int) -> int:
    value = ~byte & 0xFF
    return ((((value & 0x0F) << 3) + 0x84) << ((value >> 4) & 7)) - 0x84


def _alaw(byte: int) -> int:
    value = byte ^ 0x55
    exponent, mantissa = (value >> 4) & 7, (value & 0x0F) << 4
    return (mantissa + 0x108) << (exponent - 1) if exponent else mantissa + 8


_MULAW = tuple(_mulaw(byte) for byte in range(256))
_ALAW = tuple(_alaw(byte) for byte in range(256))
_FULL_SCALE = 32_767
_TYPES = {
    Encoding.PCM_S16LE: "h",
    Encoding.PCM_S32LE: "i",
    Encoding.PCM_F16LE: "H",
    Encoding.PCM_F32LE: "f",
    Encoding.PCM_MULAW: "B",
    Encoding.PCM_ALAW: "B",
}
_SCALE = {Encoding.PCM_S32LE: 2.0**-16, Encoding.PCM_F16LE: 32_768.0, Encoding.PCM_F32LE: 32_768.0}


class Sound:
    """What was sent last on one socket, thinned out."""

    def __init__(self, encoding: Encoding, sample_rate: int, keep_ms: int) -> None:
        self._encoding = encoding
        self._type = _TYPES[encoding]
        self._frame = frame_bytes(encoding, sample_rate)
        self._stride = _stride(sample_rate)
        self._probes = self._frame // encoding.width // self._stride  # of a frame
        self._keep = keep_ms // FRAME_MS * self._probes
        self.restart(0)

    def restart(self, position: int) -> None:
        """Begin anew with the audio at that byte of the session."""
        self._kept: array[Any] = array(self._type)
        self._first = position
        self._rest = b""

    def add(self, audio: bytes) -> None:
        """Take audio that follows, whole samples."""
        if self._rest:
            audio = self._rest + audio
        over = len(audio) % self._frame
        self._rest = audio[len(audio) - over :]
        whole = audio[: len(audio) - over] if over else audio
        self._kept.extend(array(self._type, whole)[:: self._stride])
        if len(self._kept) > 1.25 * self._keep:
            frames = (len(self._kept) - self._keep) // self._probes
            del self._kept[: frames * self._probes]
            self._first += frames * self._frame

    def levels(self, start: int, end: int) -> tuple[int, list[int]]:
        """Return how loud the session's audio between two bytes was, where it is still known.

        That is the byte at which the first whole 10 ms frame begins, and the mean magnitude, 0 to
        32767, of that frame and all that follow it.
        """
        first = max(0, -(-(start - self._first) // self._frame))
        last = max(first, (end - self._first) // self._frame)
        kept = self._kept[first * self._probes : last * self._probes]
        # Sums of frames, as differences of the running sum: nothing is looked at in Python.
        running = [0, *accumulate(_magnitudes(kept, self._encoding))][:: self._probes]
        scale = _SCALE.get(self._encoding, 1.0) / self._probes
        return self._first + first * self._frame, [
            min(_FULL_SCALE, int((after - before) * scale)) for before, after in pairwise(running)
        ]


def frame_bytes(encoding: Encoding, sample_rate: int) -> int:
    """Bytes of one 10 ms frame."""
    return sample_rate * FRAME_MS // 1000 * encoding.width


@cache
def _stride(sample_rate: int) -> int:
    """Return how far apart the samples looked at are: every frame holds equally many of them."""
    samples = sample_rate * FRAME_MS // 1000
    return max(step for step in range(1, samples // _PROBES + 1) if samples % step == 0)


def _magnitudes(samples: "array[Any]", encoding: Encoding) -> list[float]:
    """Return samples without their signs, on the encoding's own scale."""
    match encoding:
        case Encoding.PCM_MULAW:
            return [_MULAW[byte] for byte in samples]
        case Encoding.PCM_ALAW:
            return [_ALAW[byte] for byte in samples]
        case Encoding.PCM_S16LE | Encoding.PCM_S32LE:
            return list(map(abs, samples))
        case Encoding.PCM_F32LE:
            return _sane(list(map(abs, samples)))
        case Encoding.PCM_F16LE:
            halves = struct.unpack(f"<{len(samples)}e", samples.tobytes())
            return _sane(list(map(abs, halves)))


def _sane(magnitudes: list[float]) -> list[float]:
    """Take what is no number, as a producer may send, for silence, and what is absurd for loud."""
    if sum(magnitudes) <= len(magnitudes):
        return magnitudes
    return [min(value, 1.0) if isfinite(value) else 0.0 for value in magnitudes]
