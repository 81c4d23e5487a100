"""Whether this worker is overloaded, and how many sessions it takes then.

Sessions share one event loop. When that lags, every one of them is late, and each session more
makes all of them later; another worker takes it sooner, for all of them wait for the same entries.
If all are overloaded somebody has to, so an overloaded worker goes on taking sessions, one at a
time.
"""

from typing import Final

LATE_WAKEUP_S: Final = 0.25
"""Of the clock's wake-ups: audio is then a quarter of a second late, which a caller notices."""

OVERLOAD_WAKEUPS: Final = 5
"""Late wake-ups that make an overload. A crowd of sessions that begin makes fewer, and a process
that was stopped makes one."""

OVERLOADED_CLAIM_INTERVAL_S: Final = 1.0
"""Between two sessions taken while overloaded."""


class OverloadDetector:
    """Judges by how late the event loop wakes the clock, about ten times a second."""

    def __init__(self) -> None:
        self._late = 0
        self._delay_s = 0.0
        self._claimed_at = float("-inf")

    def observe(self, delay_s: float) -> None:
        """Take how late a wake-up was, in seconds; one in time ends an overload."""
        self._late = self._late + 1 if delay_s > LATE_WAKEUP_S else 0
        self._delay_s = delay_s

    @property
    def reason(self) -> str | None:
        """What is wrong; None unless overloaded."""
        if self._late < OVERLOAD_WAKEUPS:
            return None
        return f"the event loop is {self._delay_s * 1000:.0f} ms late"

    def limit(self, room: int, now: float) -> int:
        """Return how many sessions to take where there is room for so many.

        `now` is in seconds on any steady clock; what is returned counts as taken then.
        """
        if self.reason is None or room <= 0:
            return room
        if now - self._claimed_at < OVERLOADED_CLAIM_INTERVAL_S:
            return 0
        self._claimed_at = now
        return 1
