"""The watchdog: detects an open turn that neither grows nor ends, although audio is sent."""

from enum import Enum

MAX_TIMEOUT_MS = 11_200.0
"""Maximum end timeout that the provider accepts."""

MARGIN_MS = 8_000.0
"""Maximum lag of the provider behind its own timeout, with a margin."""


class WatchdogAction(Enum):
    """What to do about the open turn."""

    NONE = "nothing to do"
    REPLAY = "replaying it on a new socket"
    END = "ending it (a replay did not help)"


class Watchdog:
    """Measures the audio sent since the provider's last message, filler included.

    The provider's clock is the audio, so the limit is measured in audio. Its silence timeout ends
    any turn, so a turn without a message for longer is stuck.
    """

    def __init__(self) -> None:
        self._message_at_ms = 0.0
        self._replayed: int | None = None

    def restart(self) -> None:
        """Start on a new socket, whose audio counts from 0."""
        self._message_at_ms = 0.0

    def on_message(self, sent_ms: float) -> None:
        """Record a message that arrived after `sent_ms` of audio."""
        self._message_at_ms = sent_ms

    def is_due(self, sent_ms: float) -> bool:
        """Return whether `check` could find anything, whatever the end timeout is."""
        return sent_ms - self._message_at_ms > MARGIN_MS

    def check(self, turn: int, sent_ms: float, timeout_ms: float | None) -> WatchdogAction:
        """Return what to do about the open turn with this number and end timeout."""
        patience_ms = (timeout_ms or MAX_TIMEOUT_MS) + MARGIN_MS
        if sent_ms - self._message_at_ms <= patience_ms:
            return WatchdogAction.NONE
        if self._replayed == turn:
            return WatchdogAction.END
        self._replayed = turn
        return WatchdogAction.REPLAY
