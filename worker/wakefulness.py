"""When this process stood still: stopped by a signal, with its machine, or for want of a processor.

What came in meanwhile seems to be that much late. It is not: nobody was there to take it.
"""

from collections import deque

STANDSTILL_S = 0.3
"""Between two looks, and far beyond the time between them."""

REMEMBERED = 32
"""Standstills kept: far more than fall into the few seconds that are asked about."""


class Wakefulness:
    """Notes standstills; times are seconds on the monotonic clock."""

    def __init__(self, now: float) -> None:
        self._looked_at = now
        self._standstills: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)

    def look(self, now: float) -> None:
        """Take the time; to be called about ten times a second."""
        if now - self._looked_at > STANDSTILL_S:
            self._standstills.append((self._looked_at, now))
        self._looked_at = max(now, self._looked_at)

    def awake_s(self, since: float, until: float) -> float:
        """Return how many of the seconds from `since` to `until` the process ran."""
        stood_s = sum(
            max(0.0, min(until, ended) - max(since, began)) for began, ended in self._standstills
        )
        return until - since - stood_s
