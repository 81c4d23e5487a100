"""Audio preparation: received bytes to windows, windows to segments. No I/O."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import soxr
from numpy.typing import NDArray

from worker.local.emulator.engines.base import AudioFormat
from worker.local.pcm import PcmDecoder

RATE: Final = 16_000  # Hz, sample rate of the models
WINDOW: Final = 512  # samples in one window of the VAD model
WINDOW_S: Final = WINDOW / RATE

Samples = NDArray[np.float32]

_DIP: Final = 3  # windows: a cut point has the lowest energy over about 0.1 s


def windows(seconds: float) -> int:
    """Return the number of whole windows in a duration."""
    return int(seconds / WINDOW_S)


class Framer:
    """Converts one connection's bytes, in any chunking, to windows at `RATE`.

    Resampling delays audio by 40 ms at 44.1 or 48 kHz, by 115 ms at 8 kHz. Filters with a shorter
    delay increase the word error rate of telephone speech by one percent. Raises ValueError for an
    encoding that the protocol does not have.
    """

    def __init__(self, audio: AudioFormat) -> None:
        self._pcm = PcmDecoder(audio)
        self._resampler = (
            None
            if audio.sample_rate == RATE
            else soxr.ResampleStream(audio.sample_rate, RATE, 1, dtype="float32")
        )
        self._rest = np.empty(0, np.float32)

    def take(self, audio: bytes) -> Iterator[Samples]:
        """Return the windows that these bytes complete."""
        samples = self._pcm.decode(audio)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        return self._frame(samples)

    def end(self) -> Iterator[Samples]:
        """Return the remaining windows, the last one padded with silence."""
        samples = np.empty(0, np.float32)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=True)
            self._resampler.clear()
        missing = -(len(self._rest) + len(samples)) % WINDOW
        return self._frame(np.pad(samples, (0, missing)))

    def _frame(self, samples: Samples) -> Iterator[Samples]:
        samples = np.concatenate((self._rest, samples))
        whole = len(samples) // WINDOW * WINDOW
        self._rest = samples[whole:].copy()
        for at in range(0, whole, WINDOW):
            yield samples[at : at + WINDOW].copy()  # a view would keep the whole chunk alive


class Segment:
    """Windows of audio since the last cut, each marked as speech or not.

    `speech` is the number of speech windows. `speech_end` is the index after the last one, 0 if
    there is none.
    """

    def __init__(self) -> None:
        self.speech = 0
        self.speech_end = 0
        self._windows: list[Samples] = []
        self._voiced: list[bool] = []

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def speech_start(self) -> int:
        """Index of the first window of speech, 0 if there is none."""
        return self._voiced.index(True) if self.speech else 0

    def append(self, window: Samples, *, voiced: bool) -> None:
        """Add the next window."""
        self._windows.append(window)
        self._voiced.append(voiced)
        if voiced:
            self.speech += 1
            self.speech_end = len(self._windows)

    def audio(self, end: int) -> Samples:
        """Return the samples of the first `end` windows."""
        return np.concatenate(self._windows[:end])

    def cut(self, at: int) -> None:
        """Drop the first `at` windows."""
        self.speech -= sum(self._voiced[:at])
        self.speech_end = max(0, self.speech_end - at)
        del self._windows[:at]
        del self._voiced[:at]

    def quietest(self, begin: int) -> int:
        """Return the middle of the quietest 0.1 s from window `begin` on."""
        energy = [float(np.dot(window, window)) for window in self._windows[begin:]]
        dips = [sum(energy[at : at + _DIP]) for at in range(len(energy) - _DIP + 1)]
        return begin + dips.index(min(dips)) + _DIP // 2
