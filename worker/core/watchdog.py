"""The watchdog: an open turn that neither grows nor ends, although audio flows."""

from enum import Enum

MAX_TIMEOUT_MS = 11_200.0
"""The longest end timeout the service takes."""

MARGIN_MS = 8_000.0
"""What the service may lag behind its own timeout, and then some."""


class WatchdogAction(Enum):
    """What to do about the open turn."""

    NONE = "nothing: it moves"
    REPLAY = "hear it again on a new socket"
    END = "end it: hearing it again did not help"


class Watchdog:
    """Counts the audio sent since the service last said anything, filler included.

    The service's clock is the audio, so that is what a stuck turn is measured by. Its timeout of
    silence would have ended any turn; one that says nothing for longer is stuck.
    """

    def __init__(self) -> None:
        self._message_at_ms = 0.0
        self._replayed: int | None = None

    def restart(self) -> None:
        """Begin on a new socket, whose audio counts from 0."""
        self._message_at_ms = 0.0

    def on_message(self, sent_ms: float) -> None:
        """Note that the service said something after so many milliseconds of audio."""
        self._message_at_ms = sent_ms

    def is_due(self, sent_ms: float) -> bool:
        """Say whether `look` could find anything, whatever the end timeout is."""
        return sent_ms - self._message_at_ms > MARGIN_MS

    def check(self, turn: int, sent_ms: float, timeout_ms: float | None) -> WatchdogAction:
        """Judge the open turn, its number and its end timeout being given."""
        patience_ms = (timeout_ms or MAX_TIMEOUT_MS) + MARGIN_MS
        if sent_ms - self._message_at_ms <= patience_ms:
            return WatchdogAction.NONE
        if self._replayed == turn:
            return WatchdogAction.END
        self._replayed = turn
        return WatchdogAction.REPLAY
