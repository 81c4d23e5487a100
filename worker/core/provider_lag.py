"""The provider's usual lag, measured by one worker over all its sessions."""

from collections import deque
from statistics import median

MIN_TURNS = 5
"""Minimum number of turns before the lag is known."""

WINDOW_TURNS = 50
"""Maximum number of turns in the median; a changed lag shows after half of them."""


class ProviderLag:
    """Median lag of the last turns, because some are delayed or measured wrongly."""

    def __init__(self) -> None:
        self._lags_s: deque[float] = deque(maxlen=WINDOW_TURNS)
        self.seconds: float | None = None
        """Time from sending a sound to the event it causes; None while unknown."""

    def seed(self, seconds: float | None) -> None:
        """Use another worker's value until this worker has its own."""
        if self.seconds is None:
            self.seconds = seconds

    def observe(self, lag_s: float) -> None:
        """Add the lag of a turn."""
        self._lags_s.append(lag_s)
        if len(self._lags_s) >= MIN_TURNS:
            self.seconds = median(self._lags_s)
