"""How late the service usually is, as one worker has come to know it over all its sessions."""

from collections import deque
from statistics import median

MIN_TURNS = 5
"""Turns after which the worker knows."""

WINDOW_TURNS = 50
"""Turns that count; a service whose lag changes is known again after half of them."""


class ProviderLag:
    """The median over the last turns: some of them were held up on their way, or judged wrongly."""

    def __init__(self) -> None:
        self._lags_s: deque[float] = deque(maxlen=WINDOW_TURNS)
        self.seconds: float | None = None
        """Between a sound that was sent and the event it caused; None while that is not known."""

    def seed(self, seconds: float | None) -> None:
        """Believe a worker that knew, until this one knows better."""
        if self.seconds is None:
            self.seconds = seconds

    def observe(self, lag_s: float) -> None:
        """Count a turn."""
        self._lags_s.append(lag_s)
        if len(self._lags_s) >= MIN_TURNS:
            self.seconds = median(self._lags_s)
