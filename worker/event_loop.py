"""The event loop: detection of overload and of stalls.

A stall is a stop signal, a suspended machine, or a lack of CPU time. Data received right after a
stall may have arrived at any time during the stall.

Sessions share one event loop. If it lags, every session is late, and each new session makes all of
them later. All workers wait for the same entries, so a worker with less load takes a session first.
An overloaded worker still takes sessions, one at a time, in case all workers are overloaded.
"""

from collections import deque
from typing import Final

LATE_WAKEUP_S: Final = 0.25
"""Minimum delay of a late wake-up: audio is then a quarter of a second late, which is audible."""

OVERLOAD_WAKEUPS: Final = 5
"""Minimum consecutive late wake-ups of an overload. Many sessions that start at once cause fewer,
and a suspended process causes one."""

OVERLOADED_CLAIM_INTERVAL_S: Final = 1.0
"""Interval between two claims of an overloaded worker."""

STALL_S: Final = 0.3
"""Minimum time between two ticks that counts as a stall; far above the tick interval."""

STALL_RECOVERY_S: Final = 0.1
"""Maximum time after a stall in which the process receives the delayed data."""

MAX_STALLS: Final = 32
"""Maximum stalls kept: far more than occur in the few seconds that callers ask about."""


class OverloadDetector:
    """Detects overload from the delay of ticker wake-ups, about ten a second."""

    def __init__(self) -> None:
        self._late = 0
        self._delay_s = 0.0
        self._claimed_at = float("-inf")

    def observe(self, delay_s: float) -> None:
        """Record the delay of a wake-up, in seconds; one without delay ends an overload."""
        self._late = self._late + 1 if delay_s > LATE_WAKEUP_S else 0
        self._delay_s = delay_s

    @property
    def reason(self) -> str | None:
        """Description of the overload; None if there is none."""
        if self._late < OVERLOAD_WAKEUPS:
            return None
        return f"the event loop is {self._delay_s * 1000:.0f} ms late"

    def limit(self, room: int, now: float) -> int:
        """Return how many sessions to take if there is room for `room`.

        `now` is in seconds on a monotonic clock. The returned number counts as taken.
        """
        if self.reason is None or room <= 0:
            return room
        if now - self._claimed_at < OVERLOADED_CLAIM_INTERVAL_S:
            return 0
        self._claimed_at = now
        return 1


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
        if not self._stalls or at >= self._stalls[-1][1] + STALL_RECOVERY_S:
            return at  # the last stall is over
        for began, ended in self._stalls:
            if began < at < ended + STALL_RECOVERY_S:
                return began
        return at
