"""When a stream's next chunk is to be expected, so that nobody asks for it much earlier.

A thousand streams that bring a chunk every 100 ms, asked every 15 ms, answer "nothing yet" six
times out of seven. Live audio keeps a beat: a chunk that holds 100 ms is followed by the next in
100 ms. Whoever breaks it is asked often until it is found again.
"""

MAX_INTERVAL_S = 0.1
"""Longest time in which a stream is not looked at, however long its chunks are."""

IDLE_INTERVAL_S = 0.05
"""Time between looks at a stream that has brought nothing for a second or more."""

SMOOTHING = 1 / 8
"""How much of a chunk's lateness is believed to last: one that was held up says little."""


class PollSchedule:
    """The beat of one stream; times are seconds on one steady clock."""

    __slots__ = ("_beat_at", "_lasts_s", "last_polled_at", "next_at")

    def __init__(self, now: float) -> None:
        self._beat_at = now  # when the last chunk came, or should have
        self._lasts_s = 0.0
        self.next_at = now
        """When to look next."""
        self.last_polled_at = float("-inf")
        """When the last look began whose answer is known."""

    def on_entries(self, now: float, arrived_at: float, lasts_s: float) -> None:
        """Note a chunk that holds `lasts_s` seconds of sound, found on a look just now."""
        expected_at = self._beat_at + self._lasts_s
        if expected_at < arrived_at < expected_at + lasts_s:
            self._beat_at = expected_at + SMOOTHING * (arrived_at - expected_at)
        else:
            self._beat_at = arrived_at
        self._lasts_s = lasts_s
        self.next_at = min(self._beat_at + lasts_s, now + MAX_INTERVAL_S)

    def on_empty(self, now: float) -> None:
        """Note that a look just now found nothing."""
        late_s = now - self._beat_at - self._lasts_s
        if late_s < 0:
            self.next_at = now + min(-late_s, MAX_INTERVAL_S)
        else:
            self.next_at = now + min(late_s, 1.0) * IDLE_INTERVAL_S

    def poll_now(self) -> None:
        """Look as soon as possible: there is more, or nobody knows."""
        self.next_at = 0.0


class ClockOffset:
    """Tells by our clock when a server did what it stamped with its own.

    The stamp that reached us soonest tells how far the clocks are apart. Both may be set anew or
    drift, so only the last while counts.
    """

    WINDOW_S = 10.0

    def __init__(self) -> None:
        self._apart_s = self._before_s = float("inf")
        self._since = 0.0

    def to_local(self, now: float, stamp_s: float) -> float:
        """Return when that was which the server stamped so, and we learnt of just now."""
        if now - self._since > self.WINDOW_S:
            self._before_s = self._apart_s
            self._apart_s = float("inf")
            self._since = now
        self._apart_s = min(self._apart_s, now - stamp_s)
        return stamp_s + min(self._apart_s, self._before_s)
