"""Statistics of each client connection. Times are seconds of `time.monotonic`."""

import time
from collections import deque
from typing import Final

import msgspec

from schemas.pcm import Encoding
from worker.local.emulator.params import Params
from worker.local.emulator.rate_limits import PaceMeter

_TRANSCRIPTS_KEPT: Final = 1_000


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of one connection, as the control endpoint returns them in JSON."""

    request_id: str
    open: bool
    seconds: float
    """Duration from the upgrade to the end of the connection, or to now while it is open."""
    model: str | None
    encoding: str | None
    sample_rate: int | None
    keyterms: tuple[str, ...]
    audio_bytes: int
    audio_messages: int
    audio_s: float
    pace: float | None
    peak_pace: float
    transcripts: tuple[str, ...]
    open_transcript: str
    close_code: int | None
    faults: tuple[str, ...]


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

    def on_event(self, size: int) -> None:
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
        audio = self.params.audio
        return size / (Encoding(audio.encoding).width * audio.sample_rate)

    def report(self) -> Report:
        """Return a snapshot for JSON output."""
        params = self.params
        return Report(
            request_id=self.request_id,
            open=self.closed_at is None,
            seconds=(self.closed_at or time.monotonic()) - self.opened_at,
            model=params.model if params else None,
            encoding=params.audio.encoding if params else None,
            sample_rate=params.audio.sample_rate if params else None,
            keyterms=params.keyterms if params else (),
            audio_bytes=self.audio_bytes,
            audio_messages=self.audio_messages,
            audio_s=self.seconds_of(self.audio_bytes),
            pace=self.pace.mean,
            peak_pace=self.pace.peak,
            transcripts=tuple(self.transcripts),
            open_transcript=self.open_transcript,
            close_code=self.close_code,
            faults=tuple(self.faults),
        )
