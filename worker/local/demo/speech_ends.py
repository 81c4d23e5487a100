"""Where speech ends in a session of the demo. No I/O."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.local.emulator.engines.base import AudioFormat
from worker.local.pcm import PcmDecoder

_FRAMES_PER_S: Final = 100
_KEEP_FRAMES: Final = 60 * _FRAMES_PER_S  # turns of older audio have ended
_PAUSE_FRAMES: Final = 30  # a shorter pause does not end speech
_CLICK_FRAMES: Final = 8  # a sound of at most this length is not speech
_SWING_DB: Final = 25.0  # speech varies by 20 dB
_QUIET_DB: Final = -60.0  # softer sound is not speech


class SpeechEnds:
    """Detects the ends of speech in one session's audio, by energy alone."""

    def __init__(self, audio: AudioFormat) -> None:
        self._decoder = PcmDecoder(audio)
        self._frame = audio.sample_rate // _FRAMES_PER_S
        self._rest = np.empty(0, np.float32)
        self._levels: NDArray[np.float32] = np.empty(0, np.float32)  # dB of each 10 ms
        self._first = 0  # number of frames dropped before these

    def add(self, chunk: bytes) -> None:
        """Append audio."""
        samples = np.concatenate((self._rest, self._decoder.decode(chunk)))
        whole = len(samples) // self._frame * self._frame
        self._rest = samples[whole:]
        frames = samples[:whole].reshape(-1, self._frame)
        levels = 10 * np.log10((frames**2).mean(axis=1) + 1e-9)
        self._levels = np.concatenate((self._levels, levels))
        over = len(self._levels) - _KEEP_FRAMES
        if over > 0:
            self._levels = self._levels[over:]
            self._first += over

    def ends(self) -> list[float]:
        """Return the ends of speech in the last minute, in seconds of the audio.

        Speech that has not ended yet is assumed to end with the last chunk.
        """
        if not len(self._levels):
            return []
        floor = max(float(np.percentile(self._levels, 95)) - _SWING_DB, _QUIET_DB)
        loud = np.flatnonzero(self._levels > floor)
        parts = np.split(loud, np.flatnonzero(np.diff(loud) > _PAUSE_FRAMES) + 1)
        return [
            (self._first + float(part[-1]) + 1) / _FRAMES_PER_S
            for part in parts
            if len(part) > _CLICK_FRAMES
        ]
