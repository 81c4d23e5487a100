"""Statistics of each client connection. Times are seconds of `time.monotonic`."""

import time
from collections import deque
from typing import Any, Final

from worker.local.emulator.upgrade import Params

_TRANSCRIPTS_KEPT: Final = 1_000
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


class ConnectionStats:
    """Counters and transcripts of one connection."""

    def __init__(self, request_id: str, faults: list[str]) -> None:
        self.request_id = request_id
        self.params: Params | None = None
        """Query parameters; None until they are parsed, or if they were rejected."""
        self.opened_at = time.monotonic()
        self.greeted_at: float | None = None
        """Time at which `connected` was sent."""
        self.closed_at: float | None = None
        self.close_code: int | None = None
        self.audio_bytes = 0
        """Bytes of audio received, including audio that a pace limit rejected."""
        self.audio_messages = 0
        self.first_audio_at: float | None = None
        self.last_audio_at: float | None = None
        self.pace = PaceMeter()
        self.transcripts: deque[str] = deque(maxlen=_TRANSCRIPTS_KEPT)
        """Transcripts of the last 1,000 ended turns, as sent."""
        self.open_transcript = ""
        """Transcript of the turn that is open, or was open when the connection ended."""
        self.faults = faults
        """Specs of the faults applied to the connection, in order."""

    def add_audio(self, size: int) -> None:
        """Count an audio message of `size` bytes."""
        now = time.monotonic()
        if self.first_audio_at is None:
            self.first_audio_at = now
        self.last_audio_at = now
        self.audio_bytes += size
        self.audio_messages += 1
        self.pace.add(self.seconds_of(size), now)

    def seconds_of(self, size: int) -> float:
        """Return the duration of `size` bytes of audio; 0 while the format is unknown."""
        if self.params is None:
            return 0.0
        return size / self.params.audio.bytes_per_s

    def report(self) -> dict[str, Any]:
        """Return a snapshot for JSON output; `seconds` is the time that the connection is open."""
        audio = self.params.audio if self.params else None
        return {
            "request_id": self.request_id,
            "open": self.closed_at is None,
            "seconds": (self.closed_at or time.monotonic()) - self.opened_at,
            "model": self.params.model if self.params else None,
            "encoding": audio.encoding if audio else None,
            "sample_rate": audio.sample_rate if audio else None,
            "keyterms": self.params.keyterms if self.params else (),
            "audio_bytes": self.audio_bytes,
            "audio_messages": self.audio_messages,
            "audio_s": self.seconds_of(self.audio_bytes),
            "pace": self.pace.mean,
            "peak_pace": self.pace.peak,
            "transcripts": tuple(self.transcripts),
            "open_transcript": self.open_transcript,
            "close_code": self.close_code,
            "faults": tuple(self.faults),
        }
