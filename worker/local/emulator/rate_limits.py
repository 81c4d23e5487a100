"""Measures and limits the pace of received audio. Times are seconds of `time.monotonic`."""

from typing import Final

_WINDOW_S: Final = 1.0


class PaceMeter:
    """Measures audio seconds per second; live audio has a pace of 1."""

    def __init__(self) -> None:
        self.peak = 0.0
        """Maximum seconds of audio received within one second."""
        self._first_at: float | None = None
        self._last_at = 0.0
        self._audio_s = 0.0
        self._last_s = 0.0
        self._window_at = 0.0
        self._window_s = 0.0

    @property
    def mean(self) -> float | None:
        """Mean pace from the first message to the last; None until there are two."""
        if self._first_at is None or self._last_at == self._first_at:
            return None
        # The last message covers the time after it.
        return (self._audio_s - self._last_s) / (self._last_at - self._first_at)

    def add(self, audio_s: float, now: float) -> None:
        """Count a message."""
        if self._first_at is None:
            self._first_at = now
        if self._window_s == 0 or now - self._window_at >= _WINDOW_S:
            self._window_at = now
            self._window_s = 0.0
        self._last_at = now
        self._last_s = audio_s
        self._audio_s += audio_s
        self._window_s += audio_s
        self.peak = max(self.peak, self._window_s / _WINDOW_S)


class RateLimit:
    """Token bucket: allows audio at `speed` times real time, with bursts of `burst_s` seconds."""

    def __init__(self, speed: float, burst_s: float) -> None:
        self._speed = speed
        self._burst_s = burst_s
        self._left_s = burst_s
        self._at: float | None = None

    def allows(self, audio_s: float, now: float) -> bool:
        """Return whether a message is within the limit; a rejected message is not counted."""
        if self._at is not None:
            self._left_s = min(self._burst_s, self._left_s + (now - self._at) * self._speed)
        self._at = now
        if audio_s > self._left_s:
            return False
        self._left_s -= audio_s
        return True


class Throttle:
    """Limits reading to `per_s` bytes a second."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._free_at = 0.0

    def delay_s(self, size: int, now: float) -> float:
        """Count `size` bytes; return the delay until they are read."""
        self._free_at = max(self._free_at, now) + size / self._per_s
        return self._free_at - now
