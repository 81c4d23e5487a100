"""When this process stood still: stopped by a signal, with its machine, or for want of a processor.

What was taken in right afterwards may have waited all that time: nobody was there to take it.
"""

from collections import deque

STALL_S = 0.3
"""Between two looks, and far beyond the time between them."""

STALL_RECOVERY_S = 0.1
"""After a standstill, in which everything that waited is taken in."""

MAX_STALLS = 32
"""Standstills kept: far more than fall into the few seconds that are asked about."""


class StallDetector:
    """Notes standstills; times are seconds on the monotonic clock."""

    def __init__(self, now: float) -> None:
        self._ticked_at = now
        self._stalls: deque[tuple[float, float]] = deque(maxlen=MAX_STALLS)

    def tick(self, now: float) -> None:
        """Take the time; to be called about ten times a second."""
        if now - self._ticked_at > STALL_S:
            self._stalls.append((self._ticked_at, now))
        self._ticked_at = max(now, self._ticked_at)

    def earliest_arrival(self, at: float) -> float:
        """Return since when something that was taken in at `at` may have been there."""
        for began, ended in self._stalls:
            if began < at < ended + STALL_RECOVERY_S:
                return began
        return at
