"""When this process stood still: stopped by a signal, with its machine, or for want of a processor.

What was taken in right afterwards may have waited all that time: nobody was there to take it.
"""

from collections import deque

STANDSTILL_S = 0.3
"""Between two looks, and far beyond the time between them."""

JUST_AWAKE_S = 0.1
"""After a standstill, in which everything that waited is taken in."""

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

    def earliest(self, at: float) -> float:
        """Return since when something that was taken in at `at` may have been there."""
        for began, ended in self._standstills:
            if began < at < ended + JUST_AWAKE_S:
                return began
        return at
