"""The watchdog: an open turn that neither grows nor ends, although audio flows."""

from enum import Enum

LONGEST_TIMEOUT_MS = 11_200.0
"""The longest end timeout the service takes."""

MARGIN_MS = 8_000.0
"""What the service may lag behind its own timeout, and then some."""


class Bark(Enum):
    """What to do about the open turn."""

    NO = "nothing: it moves"
    REPLAY = "hear it again on a new socket"
    END = "end it: hearing it again did not help"


class Watchdog:
    """Counts the audio sent since the service last said anything, filler included.

    The service's clock is the audio, so that is what a stuck turn is measured by. Its timeout of
    silence would have ended any turn; one that says nothing for longer is stuck.
    """

    def __init__(self) -> None:
        self._said_at_ms = 0.0
        self._replayed: int | None = None

    def restart(self) -> None:
        """Begin on a new socket, whose audio counts from 0."""
        self._said_at_ms = 0.0

    def said(self, sent_ms: float) -> None:
        """Note that the service said something after so many milliseconds of audio."""
        self._said_at_ms = sent_ms

    def may_bark(self, sent_ms: float) -> bool:
        """Say whether `look` could find anything, whatever the end timeout is."""
        return sent_ms - self._said_at_ms > MARGIN_MS

    def look(self, turn: int, sent_ms: float, timeout_ms: float | None) -> Bark:
        """Judge the open turn, its number and its end timeout being given."""
        patience_ms = (timeout_ms or LONGEST_TIMEOUT_MS) + MARGIN_MS
        if sent_ms - self._said_at_ms <= patience_ms:
            return Bark.NO
        if self._replayed == turn:
            return Bark.END
        self._replayed = turn
        return Bark.REPLAY
