"""Detection of process stalls: a stop signal, a suspended machine, or a lack of CPU time.

Data received right after a stall may have arrived at any time during the stall.
"""

from collections import deque

STALL_S = 0.3
"""Minimum time between two ticks that counts as a stall; far above the tick interval."""

STALL_RECOVERY_S = 0.1
"""Maximum time after a stall in which the process receives the delayed data."""

MAX_STALLS = 32
"""Maximum stalls kept: far more than occur in the few seconds that callers ask about."""


class StallDetector:
    """Records stalls; times are seconds on the monotonic clock."""

    def __init__(self, now: float) -> None:
        self._ticked_at = now
        self._stalls: deque[tuple[float, float]] = deque(maxlen=MAX_STALLS)

    def tick(self, now: float) -> None:
        """Record the time. Call it about ten times a second."""
        if now - self._ticked_at > STALL_S:
            self._stalls.append((self._ticked_at, now))
        self._ticked_at = max(now, self._ticked_at)

    def earliest_arrival(self, at: float) -> float:
        """Return the earliest time at which data received at `at` may have arrived."""
        for began, ended in self._stalls:
            if began < at < ended + STALL_RECOVERY_S:
                return began
        return at
