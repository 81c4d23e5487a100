"""How late the service usually is, as one worker has come to know it over all its sessions."""

from collections import deque
from statistics import median

ENOUGH = 5
"""Turns after which the worker knows."""

REMEMBERED = 50
"""Turns that count; a service whose lag changes is known again after half of them."""


class UsualLag:
    """The median over the last turns: some of them were held up on their way, or judged wrongly."""

    def __init__(self) -> None:
        self._lags_s: deque[float] = deque(maxlen=REMEMBERED)
        self.seconds: float | None = None
        """Between a sound that was sent and the event it caused; None while that is not known."""

    def inherit(self, seconds: float | None) -> None:
        """Believe a worker that knew, until this one knows better."""
        if self.seconds is None:
            self.seconds = seconds

    def note(self, lag_s: float) -> None:
        """Count a turn."""
        self._lags_s.append(lag_s)
        if len(self._lags_s) >= ENOUGH:
            self.seconds = median(self._lags_s)
