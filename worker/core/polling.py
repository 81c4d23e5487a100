"""Predicts when a stream's next chunk arrives, to avoid polling much earlier.

A thousand streams with a chunk every 100 ms, polled every 15 ms, return nothing six times out of
seven. Live audio is regular: a chunk of 100 ms is followed by the next one in 100 ms. A stream that
becomes irregular is polled often until it is regular again.
"""

MAX_INTERVAL_S = 0.1
"""Maximum interval between polls of a stream, however long its chunks are."""

IDLE_INTERVAL_S = 0.05
"""Interval between polls of a stream without entries for a second or more."""

SMOOTHING = 1 / 8
"""Share of a chunk's lateness that shifts the schedule: a single late chunk proves little."""


class PollSchedule:
    """The poll schedule of one stream; times are seconds on one monotonic clock."""

    __slots__ = ("_beat_at", "_lasts_s", "last_polled_at", "next_at")

    def __init__(self, now: float) -> None:
        self._beat_at = now  # when the last chunk arrived, or was due
        self._lasts_s = 0.0
        self.next_at = now
        """Time of the next poll."""
        self.last_polled_at = float("-inf")
        """Start time of the last poll whose result is known."""

    def on_entries(self, now: float, arrived_at: float, lasts_s: float) -> None:
        """Record a chunk of `lasts_s` seconds that a poll just returned."""
        expected_at = self._beat_at + self._lasts_s
        if expected_at < arrived_at < expected_at + lasts_s:
            self._beat_at = expected_at + SMOOTHING * (arrived_at - expected_at)
        else:
            self._beat_at = arrived_at
        self._lasts_s = lasts_s
        self.next_at = min(self._beat_at + lasts_s, now + MAX_INTERVAL_S)

    def on_empty(self, now: float) -> None:
        """Record that a poll just returned nothing."""
        late_s = now - self._beat_at - self._lasts_s
        if late_s < 0:
            self.next_at = now + min(-late_s, MAX_INTERVAL_S)
        else:
            self.next_at = now + min(late_s, 1.0) * IDLE_INTERVAL_S

    def poll_now(self) -> None:
        """Poll as soon as possible: there are more entries, or there may be."""
        self.next_at = 0.0


class ClockOffset:
    """Converts timestamps of a server's clock to the local clock.

    The timestamp with the shortest delay gives the offset of the clocks. Clocks may be set or
    drift, so only timestamps of the last one or two windows count.
    """

    WINDOW_S = 10.0

    def __init__(self) -> None:
        self._apart_s = self._before_s = float("inf")
        self._since = 0.0

    def to_local(self, now: float, stamp_s: float) -> float:
        """Return the local time of the server's timestamp `stamp_s`, received at `now`."""
        if now - self._since > self.WINDOW_S:
            self._before_s = self._apart_s
            self._apart_s = float("inf")
            self._since = now
        self._apart_s = min(self._apart_s, now - stamp_s)
        return stamp_s + min(self._apart_s, self._before_s)
