"""Sound files, read for playing into a session."""

from pathlib import Path

import msgspec
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from worker.local.engines.base import AudioFormat
from worker.local.engines.pcm import encode


class Sound(msgspec.Struct, frozen=True):
    """Mono samples in [-1, 1] at a rate in Hz."""

    samples: NDArray[np.float32]
    rate: int

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return len(self.samples) / self.rate

    def resample(self, rate: int) -> "Sound":
        """Give the same sound at another rate in Hz."""
        if rate == self.rate:
            return self
        return Sound(soxr.resample(self.samples, self.rate, rate), rate)

    def encode(self, audio: AudioFormat) -> bytes:
        """Give the bytes a client of that format would send.

        Raises KeyError for an encoding that is not of the wire.
        """
        return encode(self.resample(audio.sample_rate).samples, audio.encoding)


def read(path: Path) -> Sound:
    """Read a WAV, FLAC or other file that libsndfile knows, its channels mixed down to one.

    Raises OSError if the file cannot be opened, ValueError if it is not a sound file or empty.
    """
    with path.open("rb") as file:
        try:
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(
                f"{path} is not a sound file that can be read: {error.error_string}"
            ) from error
    if not len(samples):
        raise ValueError(f"{path} holds no audio")
    return Sound(samples.mean(axis=1), int(rate))
