"""Tracks: the frames of one session become numbered chunks, which wait for Redis. No I/O."""

from collections import deque
from typing import Any

import msgspec

from schemas.audio import MAX_AUDIO_BYTES, AudioEntry, SessionEntry, TurnConfig
from worker.core.sequence import MAX_HOLE
from worker.ingest.counters import IngestCounters
from worker.ingest.records import Audio

MAX_CONTROLS = 1_000
"""Maximum entries with a mark, a forced end or a config that wait for Redis."""

MAX_CONTROL_BYTES = 256 * 1024
"""Maximum size of these entries, as JSON."""

FIRST_NUMBER = 1
"""Number of a track's first frame: one with a higher number waits for it."""

MAX_HOLE_MS = 3_600_000
"""Maximum milliseconds missing in one hole; a larger jump of the timestamps is an error."""

MAX_STEP_BACK = 500
"""Maximum step back of a repeated frame's number; after a larger one, the peer counts anew."""

REORDER_MS = 100
"""Maximum milliseconds for which a frame waits for an earlier one, in time and in audio."""

MAX_HELD_FRAMES = 100
"""Maximum frames that wait for an earlier one."""


class Track:
    """The audio of one session: chunks of `chunk_ms`, with `seq` from 0.

    At most `buffer_s` of audio waits for Redis. Beyond it, the oldest audio is dropped, and its
    numbers stay used: the worker reports the hole. `now` is in seconds, by any clock.
    """

    def __init__(
        self,
        entry: SessionEntry,
        src: str,
        counters: IngestCounters,
        *,
        chunk_ms: int = 100,
        buffer_s: float = 30.0,
    ) -> None:
        self.entry = entry
        self._src = src
        self._counters = counters
        self._width = entry.encoding.width
        self._bytes_per_ms = entry.sample_rate * self._width / 1000
        self._chunk_ms = chunk_ms
        samples = min(entry.sample_rate * chunk_ms // 1000, MAX_AUDIO_BYTES // self._width)
        self._chunk_bytes = samples * self._width
        self._max_waiting_bytes = max(int(buffer_s * 1000 * self._bytes_per_ms), self._chunk_bytes)
        self._max_waiting_chunks = 2 * (self._max_waiting_bytes // self._chunk_bytes + 1)
        self._seq = 0
        self._partial = bytearray()
        self._partial_due: float | None = None
        self._position_ms: float | None = None  # timestamp of the next sample
        self._next_number: int | None = None
        self._held: dict[int, Audio] = {}  # frames that wait for an earlier one
        self._held_bytes = 0
        self._held_due: float | None = None
        self._oldest: deque[AudioEntry] = deque()  # controls older than all of `_waiting`
        self._waiting: deque[AudioEntry] = deque()
        self._waiting_bytes = 0
        self._waiting_chunks = 0
        self._controls = 0
        self._control_bytes = 0
        self._ended = False
        self._end_taken = False
        self.has_audio = False
        """Whether the track ever had a sample."""
        self.over = False
        """Whether the session takes no more entries."""
        self.dropped_bytes = 0
        """Bytes of audio that no entry holds."""

    # -- input

    def audio(self, frame: Audio, now: float) -> None:
        """Add a frame."""
        self._counters.frames += 1
        if self.over or self._ended:
            self._counters.frames_unused += 1
            self.dropped_bytes += len(frame.audio)
        elif frame.number is None:
            self._add(frame, now)
        else:
            self._order(frame, frame.number, now)

    def mark(self, mark: dict[str, Any]) -> None:
        """Add a mark behind the audio so far."""
        self._cut()
        self._enqueue_numbered(AudioEntry(mark=mark))

    def turn_end(self) -> None:
        """Force the end of the open turn behind the audio so far."""
        self._cut()
        self._enqueue_numbered(AudioEntry(turn_end=True))

    def configure(self, config: TurnConfig) -> None:
        """Add turn settings for the audio that follows."""
        self._cut()
        self._enqueue(AudioEntry(config=config))

    def end(self, now: float) -> None:
        """End the track behind the audio so far."""
        if not self._ended:
            self._release_held(now)
            self._cut()
            self._drop_partial_sample()
            self._ended = True

    def resume(self, now: float) -> None:
        """Continue with another socket, which has its own numbers and timestamps."""
        self._release_held(now)
        self._cut()
        self._drop_partial_sample()
        self._next_number = self._position_ms = None

    def close(self) -> None:
        """Drop all that waits, and take no more: the session is over."""
        self.over = True
        self.dropped_bytes += len(self._partial) + self._held_bytes + self._waiting_bytes
        self._partial.clear()
        self._held.clear()
        self._oldest.clear()
        self._waiting.clear()
        self._held_bytes = self._waiting_bytes = self._waiting_chunks = 0
        self._controls = self._control_bytes = 0
        self._partial_due = self._held_due = None

    @property
    def due(self) -> float | None:
        """Time of the next `flush_due`; None if nothing has to be flushed."""
        if self._partial_due is None or self._held_due is None:
            return self._held_due if self._partial_due is None else self._partial_due
        return min(self._partial_due, self._held_due)

    def flush_due(self, now: float) -> None:
        """Flush what has waited long enough for more audio."""
        if self._held_due is not None and now >= self._held_due:
            self._release_held(now)
        if self._partial_due is not None and now >= self._partial_due:
            self._cut()

    # -- output

    @property
    def ready(self) -> bool:
        """Whether `take` returns entries. A track that never had audio has none."""
        waits = self._oldest or self._waiting or (self._ended and not self._end_taken)
        return self.has_audio and not self.over and bool(waits)

    @property
    def finished(self) -> bool:
        """Whether no entry follows."""
        return self.over or (self._ended and not self.ready)

    def take(self, limit: int) -> list[AudioEntry]:
        """Remove and return up to `limit` entries, the oldest first; the last one is the end."""
        taken: list[AudioEntry] = []
        while self.ready and len(taken) < limit:
            if self._oldest:
                entry = self._oldest.popleft()
            elif self._waiting:
                entry = self._waiting.popleft()
            else:
                entry = AudioEntry(end=True)
                self._end_taken = True
            if _is_control(entry):
                self._count_control(entry, -1)
            self._waiting_bytes -= len(entry.audio)
            self._waiting_chunks -= bool(entry.audio)
            taken.append(entry)
        return taken

    # -- the order of numbered frames

    def _order(self, frame: Audio, number: int, now: float) -> None:
        if self._held_due is not None and now >= self._held_due:
            self._release_held(now)
        if self._next_number is None:
            self._next_number = min(number, FIRST_NUMBER)
        expected = self._next_number
        if expected - number > MAX_STEP_BACK:
            self._release_held(now)
            expected = number
        if number < expected or number in self._held:
            self._counters.frames_repeated += 1
            self.dropped_bytes += len(frame.audio)
        elif number > expected:
            self._hold(frame, number, now)
        else:
            self._next_number = number + 1
            self._add(frame, now)
            self._release_following(now)

    def _hold(self, frame: Audio, number: int, now: float) -> None:
        self._held[number] = frame
        self._held_bytes += len(frame.audio)
        if self._held_due is None:
            self._held_due = now + REORDER_MS / 1000
        too_much = self._held_bytes > REORDER_MS * self._bytes_per_ms
        if too_much or len(self._held) > MAX_HELD_FRAMES:
            self._release_held(now)

    def _release_following(self, now: float) -> None:
        """Add the held frames that follow without a gap."""
        while self._held and self._next_number in self._held:
            frame = self._held.pop(self._next_number)
            self._next_number += 1
            self._held_bytes -= len(frame.audio)
            self._add(frame, now)
        if not self._held:
            self._held_due = None

    def _release_held(self, now: float) -> None:
        """Add the held frames without those that are missing."""
        for number in sorted(self._held):
            self._next_number = number + 1
            self._add(self._held[number], now)
        self._held.clear()
        self._held_bytes = 0
        self._held_due = None

    # -- chunks

    def _add(self, frame: Audio, now: float) -> None:
        if not frame.audio:
            return
        if frame.at_ms is not None:
            self._skip_missing(frame.at_ms)
        if self._position_ms is not None:
            self._position_ms += len(frame.audio) / self._bytes_per_ms
        if self._partial_due is None:
            self._partial_due = now + self._chunk_ms / 1000
        self._partial += frame.audio
        if len(self._partial) < self._chunk_bytes:
            return
        while len(self._partial) >= self._chunk_bytes:
            self._cut_bytes(self._chunk_bytes)
        self._partial_due = now + self._chunk_ms / 1000 if self._partial else None

    def _skip_missing(self, at_ms: int) -> None:
        """Skip the numbers of the whole chunks that are missing before a timestamp."""
        if self._position_ms is None:
            self._position_ms = at_ms
        missing_ms = at_ms - self._position_ms
        if abs(missing_ms) < self._chunk_ms:
            return
        chunks = int(missing_ms // self._chunk_ms)
        if 0 < missing_ms <= MAX_HOLE_MS and chunks <= MAX_HOLE:
            self._cut()
            self._drop_partial_sample()
            self._seq += chunks
            self._counters.holes += chunks
            self._position_ms += chunks * self._chunk_ms
        else:  # the peer's clock jumped
            self._position_ms = at_ms

    def _cut(self) -> None:
        """Make an entry of the whole samples so far."""
        self._partial_due = None
        if size := len(self._partial) - len(self._partial) % self._width:
            self._cut_bytes(size)

    def _cut_bytes(self, size: int) -> None:
        audio = bytes(self._partial[:size])
        del self._partial[:size]
        self.has_audio = True
        self._enqueue_numbered(AudioEntry(audio=audio))

    def _enqueue_numbered(self, entry: AudioEntry) -> None:
        """Give an entry the next number, so that an append that is retried counts once."""
        seq, self._seq = self._seq, self._seq + 1
        self._enqueue(msgspec.structs.replace(entry, seq=seq, src=self._src))

    def _drop_partial_sample(self) -> None:
        """Drop a sample whose other bytes never came, so that the next one begins in its place."""
        self.dropped_bytes += len(self._partial)
        self._partial.clear()

    # -- what waits for Redis

    def _enqueue(self, entry: AudioEntry) -> None:
        if self.over or self._ended:
            return
        self._waiting.append(entry)
        self._waiting_bytes += len(entry.audio)
        self._waiting_chunks += bool(entry.audio)
        if _is_control(entry):
            self._count_control(entry, 1)
        while (
            self._waiting_bytes > self._max_waiting_bytes
            or self._waiting_chunks > self._max_waiting_chunks
        ):
            self._drop_oldest_audio()
        while self._controls > MAX_CONTROLS or self._control_bytes > MAX_CONTROL_BYTES:
            self._drop_oldest_control()

    def _drop_oldest_audio(self) -> None:
        entry = self._waiting.popleft()
        if _is_control(entry):
            self._oldest.append(entry)
            return
        size = len(entry.audio)
        self._waiting_bytes -= size
        self._waiting_chunks -= 1
        self.dropped_bytes += size
        self._counters.dropped_ms += size / self._bytes_per_ms

    def _drop_oldest_control(self) -> None:
        self._counters.controls_dropped += 1
        if self._oldest:
            dropped = self._oldest.popleft()
        else:
            at = next(at for at, entry in enumerate(self._waiting) if _is_control(entry))
            dropped = self._waiting[at]
            del self._waiting[at]
        self._count_control(dropped, -1)

    def _count_control(self, entry: AudioEntry, sign: int) -> None:
        self._controls += sign
        if entry.mark is not None:
            self._control_bytes += sign * len(msgspec.json.encode(entry.mark))


def _is_control(entry: AudioEntry) -> bool:
    return not entry.audio
