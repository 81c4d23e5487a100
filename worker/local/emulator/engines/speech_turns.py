"""Where turns begin and end, from the speech probability of each window of audio. Pure.

Everything hangs on one number, the likelihood that the user is still in a turn:

- a window of speech takes away most of what it lacks to 1;
- silence halves it every `HALF_LIFE_S`;
- a window that is neither leaves it as it is.

At the default thresholds two windows of speech in a row begin a turn, 0.35 s of silence makes it
probably over and 0.8 s over. A lower `end` threshold asks for more silence: 1.0 s at 0.2, 1.5 s
at 0.1. Time is counted in windows, so it is the audio's and not the clock's.
"""

from typing import Final, Literal

from worker.local.emulator.engines.base import TurnSettings
from worker.local.emulator.engines.speech_audio import WINDOW_S

TurnStep = Literal["turn.start", "turn.eager_end", "turn.resume", "turn.end"]

SPEECH: Final = 0.5  # a window more probable than this is speech
SILENCE: Final = 0.35  # one less probable is silence; between them lie breaths and word ends
HALF_LIFE_S: Final = 0.45

_DOUBT_KEPT: Final = 0.4  # of 1 - likelihood, by one window of speech
_DECAY: Final = 0.5 ** (WINDOW_S / HALF_LIFE_S)


class TurnDetector:
    """The turns of one connection.

    `settings` may be replaced at any time. `likelihood` is that of being in a turn.
    """

    def __init__(self, settings: TurnSettings) -> None:
        self.settings = settings
        self.likelihood = 0.0
        self.state: Literal["idle", "speaking", "ended eagerly"] = "idle"
        self._quiet_s = 0.0  # since the last window of speech

    @property
    def in_turn(self) -> bool:
        """Whether a turn is open."""
        return self.state != "idle"

    def hear(self, probability: float) -> TurnStep | None:
        """Take the speech probability of the next window; tell what it changes, if anything."""
        if probability > SPEECH:
            self._quiet_s = 0.0
            self.likelihood = 1.0 - (1.0 - self.likelihood) * _DOUBT_KEPT
        else:
            self._quiet_s += WINDOW_S
            if not self.in_turn:
                # Only unbroken speech begins a turn: clicks must not add up to one.
                self.likelihood = 0.0
            elif probability < SILENCE:
                self.likelihood *= _DECAY
        return self._step()

    def end(self) -> TurnStep | None:
        """End the turn here, if one is open, because no more audio will come."""
        self.likelihood = 0.0
        if not self.in_turn:
            return None
        self.state = "idle"
        return "turn.end"

    def _step(self) -> TurnStep | None:
        settings = self.settings
        risen = self.likelihood > settings.start
        if self.state == "idle":
            if not risen:
                return None
            self.state = "speaking"
            return "turn.start"
        if self.likelihood < settings.end or self._quiet_s * 1000 >= settings.end_timeout_ms:
            return self.end()
        if self.state == "ended eagerly" and risen:
            self.state = "speaking"
            return "turn.resume"
        if self.state == "speaking" and self.likelihood < settings.eager_end:
            self.state = "ended eagerly"
            return "turn.eager_end"
        return None
