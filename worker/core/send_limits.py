"""Limits of what is sent to the provider: the pace of the audio, and the size of one message."""

from schemas.pcm import MAX_SAMPLE_BYTES

MIN_FRAME_BYTES = 256
"""Minimum value of the limit. It is a multiple of every sample size."""


class Pacer:
    """Limits audio to `speed` times real time, after a burst: a token bucket of milliseconds.

    The provider is specified for real time and has been seen to reject bursts. Live audio arrives
    at 1.0 and is never held back; a replay or a backlog is. A `speed` of 0 is unlimited.
    """

    def __init__(self, speed: float, burst_ms: float = 300.0) -> None:
        self._speed = self._full_speed = self._wanted = speed
        self._burst_ms = burst_ms
        self._slowed = 0
        self._tokens = burst_ms
        self._at: float | None = None

    @property
    def is_fast(self) -> bool:
        """Whether late audio may be sent faster than real time."""
        return self._speed == 0 or self._speed > 1

    def restart(self, now: float, max_speed: float = 0.0) -> None:
        """Start a new connection at `now`, seconds on any monotonic clock.

        `max_speed` is what its provider bears; 0 if that is unlimited.
        """
        full_speed = min(self._wanted or max_speed, max_speed or self._wanted)
        if full_speed != self._full_speed:  # another provider
            self._speed = self._full_speed = full_speed
            self._slowed = 0
        self._tokens = self._burst_ms
        self._at = now

    def limit_to_real_time(self) -> None:
        """Limit the speed to real time, because the provider rejects more."""
        if self.is_fast:
            self._speed = 1.0
            self._slowed += 1

    def resume_speed(self) -> None:
        """Restore the initial speed, because the provider rejected something else.

        This works only once. Otherwise settings that are rejected with every chunk would be
        attributed to the pace again and again, each time on a new socket.
        """
        if self._slowed <= 1:
            self._speed = self._full_speed

    def allowance_ms(self, now: float) -> float:
        """Return the milliseconds of audio that may be sent now."""
        if self._speed == 0:
            return float("inf")
        if self._at is not None:
            refill = (now - self._at) * 1000 * self._speed
            self._tokens = min(self._burst_ms, self._tokens + refill)
        self._at = now
        return self._tokens

    def take(self, now: float, ms: float) -> bool:
        """Spend `ms` milliseconds if that much may be sent now; return whether it may."""
        if ms > self.allowance_ms(now):
            return False
        self.spend(ms)
        return True

    def spend(self, ms: float) -> None:
        """Subtract `ms` milliseconds of audio sent. A negative balance delays the next audio."""
        if self._speed:
            self._tokens -= ms


class FrameLimit:
    """Limits the audio in one message; learned from rejected ones. A worker's sessions share it.

    The provider does not publish its limit, and no close code gives it.
    """

    def __init__(self) -> None:
        self.max_bytes = 2**62
        """Maximum size of a message, whole samples of any encoding."""

    def refused(self, size: int) -> bool:
        """Record a rejected message; `size` is the largest message sent on its socket.

        Returns whether smaller messages can be sent.
        """
        if self.max_bytes < size:
            return True  # another session has learned it
        smaller = max(MIN_FRAME_BYTES, size // 2 - size // 2 % MAX_SAMPLE_BYTES)
        if smaller >= size:
            return False
        self.max_bytes = smaller
        return True
