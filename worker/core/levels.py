"""Loudness of the audio last sent, in any of the six encodings, without decoding all of it.

Loudness is only needed at a turn's start and end, to find where its sound begins and stops. So the
buffer keeps one of every few samples, which costs 1 us a chunk. Levels are computed on demand, in
about 10 us a second of audio. The worker needs no numpy, and stores no audio.
"""

from array import array
from functools import cache
from typing import Any

from schemas.pcm import Encoding
from worker.core.loudness import frame_levels

FRAME_MS = 10
_PROBES = 10  # minimum samples per frame: they are as loud as all samples are


class LevelBuffer:
    """Subsampled audio that was last sent on one socket."""

    def __init__(self, encoding: Encoding, sample_rate: int, keep_ms: int) -> None:
        self._encoding = encoding
        self._type = encoding.type_code.replace("e", "H")  # arrays have no half floats
        self._frame = frame_bytes(encoding, sample_rate)
        self._stride = _stride(sample_rate)
        self._probes = self._frame // encoding.width // self._stride  # of a frame
        self._keep = keep_ms // FRAME_MS * self._probes
        self.restart(0)

    def restart(self, position: int) -> None:
        """Clear the buffer; the next audio begins at session byte `position`."""
        self._kept: array[Any] = array(self._type)
        self._first = position
        self._rest = b""

    def add(self, audio: bytes) -> None:
        """Add the next audio, in whole samples."""
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
        """Return the loudness of the session's audio between two bytes, where it is still known.

        Returns the byte at which the first whole 10 ms frame begins, and the mean magnitude of each
        frame, 0 to 32767.
        """
        first = max(0, -(-(start - self._first) // self._frame))
        last = max(first, (end - self._first) // self._frame)
        kept = self._kept[first * self._probes : last * self._probes]
        return self._first + first * self._frame, frame_levels(kept, self._encoding, self._probes)


def frame_bytes(encoding: Encoding, sample_rate: int) -> int:
    """Bytes of one 10 ms frame."""
    return sample_rate * FRAME_MS // 1000 * encoding.width


@cache
def _stride(sample_rate: int) -> int:
    """Return the distance between kept samples; every frame has the same number of them."""
    samples = sample_rate * FRAME_MS // 1000
    return max(step for step in range(1, samples // _PROBES + 1) if samples % step == 0)
