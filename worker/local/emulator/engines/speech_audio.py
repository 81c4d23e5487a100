"""Audio on its way to being read: wire bytes to windows, windows to segments. No I/O."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import soxr
from numpy.typing import NDArray

from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.pcm import PcmDecoder

RATE: Final = 16_000  # Hz, of all audio the models hear
WINDOW: Final = 512  # samples the models are given at a time
WINDOW_S: Final = WINDOW / RATE

Samples = NDArray[np.float32]

_DIP: Final = 3  # windows: a place to cut at is looked for by the energy of about 0.1 s


def windows(seconds: float) -> int:
    """Tell how many whole windows that is."""
    return int(seconds / WINDOW_S)


class Framer:
    """Makes windows at `RATE` of one connection's bytes, however those are cut into chunks.

    Resampling holds back 40 ms of audio at 44.1 or 48 kHz, 115 ms at 8 kHz: filters that hold
    back less cost telephone speech a percent of its words. Raises KeyError for an encoding that is
    not of the wire.
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
        """Give the windows that are complete with these bytes."""
        samples = self._pcm.decode(audio)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        return self._frame(samples)

    def end(self) -> Iterator[Samples]:
        """Give what is left, the last window filled up with silence."""
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
    """Windows of audio since the last cut, each with whether it is speech.

    `speech` is the count of those that are and `speech_end` the place after the last one, 0 if
    there is none.
    """

    def __init__(self) -> None:
        self.speech = 0
        self.speech_end = 0
        self._windows: list[Samples] = []
        self._voiced: list[bool] = []

    def __len__(self) -> int:
        return len(self._windows)

    def append(self, window: Samples, *, voiced: bool) -> None:
        """Add the next window."""
        self._windows.append(window)
        self._voiced.append(voiced)
        if voiced:
            self.speech += 1
            self.speech_end = len(self._windows)

    def audio(self, end: int) -> Samples:
        """Give the samples of the first `end` windows."""
        return np.concatenate(self._windows[:end])

    def cut(self, at: int) -> None:
        """Drop the first `at` windows."""
        self.speech -= sum(self._voiced[:at])
        self.speech_end = max(0, self.speech_end - at)
        del self._windows[:at]
        del self._voiced[:at]

    def quietest(self, begin: int) -> int:
        """Find the middle of the quietest 0.1 s from window `begin` on."""
        energy = [float(np.dot(window, window)) for window in self._windows[begin:]]
        dips = [sum(energy[at : at + _DIP]) for at in range(len(energy) - _DIP + 1)]
        return begin + dips.index(min(dips)) + _DIP // 2
