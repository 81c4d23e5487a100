"""Turn detection from the speech probability of each window of audio. No I/O.

The detector tracks one number, the likelihood that the user is still in a turn:

- a window of speech raises it most of the way to 1;
- silence halves it every `HALF_LIFE_S`;
- a window that is neither does not change it.

At the default thresholds, two consecutive windows of speech begin a turn. It is probably over
after 0.35 s of silence, and over after 0.8 s. A lower `end` threshold requires more silence: 1.0 s
at 0.2, 1.5 s at 0.1. Time is counted in windows of audio, not by the clock.
"""

from typing import Final, Literal

from worker.local.emulator.engines.base import EndTrigger, TurnSettings
from worker.local.emulator.engines.speech_audio import WINDOW_S

TurnStep = Literal["turn.start", "turn.eager_end", "turn.resume", "turn.end"]

SPEECH: Final = 0.5  # a window more probable than this is speech
SILENCE: Final = 0.35  # a window less probable is silence; breaths and word ends are in between
HALF_LIFE_S: Final = 0.45

_DOUBT_KEPT: Final = 0.4  # one window of speech multiplies 1 - likelihood by this
_DECAY: Final = 0.5 ** (WINDOW_S / HALF_LIFE_S)


class TurnDetector:
    """Detects the turns of one connection.

    `settings` may be replaced at any time. `likelihood` is the likelihood of being in a turn.
    """

    def __init__(self, settings: TurnSettings) -> None:
        self.settings = settings
        self.likelihood = 0.0
        self.state: Literal["idle", "speaking", "ended eagerly"] = "idle"
        self.trigger: EndTrigger = "model"
        """Why the last turn ended by itself."""
        self._quiet_s = 0.0  # since the last window of speech

    @property
    def in_turn(self) -> bool:
        """Whether a turn is open."""
        return self.state != "idle"

    def update(self, probability: float) -> TurnStep | None:
        """Process the speech probability of the next window; return the resulting turn event."""
        if probability > SPEECH:
            self._quiet_s = 0.0
            self.likelihood = 1.0 - (1.0 - self.likelihood) * _DOUBT_KEPT
        else:
            self._quiet_s += WINDOW_S
            if not self.in_turn:
                # Only continuous speech begins a turn: clicks must not accumulate.
                self.likelihood = 0.0
            elif probability < SILENCE:
                self.likelihood *= _DECAY
        return self._step()

    def end(self) -> TurnStep | None:
        """End the open turn, because no more audio follows."""
        self.likelihood = 0.0
        if not self.in_turn:
            return None
        self.state = "idle"
        return "turn.end"

    def _step(self) -> TurnStep | None:
        settings = self.settings
        above_start = self.likelihood > settings.start
        if self.state == "idle":
            if not above_start:
                return None
            self.state = "speaking"
            return "turn.start"
        if self.likelihood < settings.end or self._quiet_s * 1000 >= settings.end_timeout_ms:
            self.trigger = "model" if self.likelihood < settings.end else "timeout"
            return self.end()
        if self.state == "ended eagerly" and above_start:
            self.state = "speaking"
            return "turn.resume"
        if self.state == "speaking" and self.likelihood < settings.eager_end:
            self.state = "ended eagerly"
            return "turn.eager_end"
        return None
