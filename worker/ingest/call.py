"""One call: its records become entries of its sessions, over one socket or several in turn."""

import asyncio
import logging
from math import inf

import anyio
import msgspec

from schemas import SessionEntry
from worker.ingest.appender import SessionAppender, SessionOverError
from worker.ingest.counters import IngestCounters
from worker.ingest.records import (
    Audio,
    CallInput,
    Configured,
    Ended,
    Marked,
    ProtocolError,
    Started,
    TurnEnded,
)
from worker.ingest.track import REORDER_MS, Track

log = logging.getLogger(__name__)

MAX_BATCH = 32
"""Maximum entries in one append, after an outage."""


class CallLimits(msgspec.Struct, frozen=True):
    """Limits of a call, and of the number of calls."""

    chunk_ms: int = 100
    """Milliseconds of audio in an entry, and the maximum time that audio waits for more."""
    buffer_s: float = 30.0
    """Seconds of audio of a track that may wait for Redis."""
    grace_s: float = 5.0
    """Seconds for which a call waits for its producer to return after a lost socket."""
    max_calls: int = 1_000


class CallRefusedError(Exception):
    """A call that cannot be opened; `status` is the HTTP status to answer with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Call:
    """One call: a session for each of its tracks, over one socket or several in turn."""

    def __init__(
        self,
        started: Started,
        protocol: str,
        src: str,
        appenders: list[SessionAppender],
        limits: CallLimits,
        counters: IngestCounters,
    ) -> None:
        self.sessions = started.sessions
        """The sessions of the call, a track each."""
        self.protocol = protocol
        self._limits = limits
        self._counters = counters
        self._tracks = [
            Track(each, src, counters, chunk_ms=limits.chunk_ms, buffer_s=limits.buffer_s)
            for each in started.sessions
        ]
        self._appenders = appenders
        self._lost_at: float | None = None
        # As `anyio.current_time`, which costs more, and is for tasks only: `feed` is called by one
        # or by a callback.
        self._now = asyncio.get_running_loop().time
        self._changed = asyncio.Event()
        self._wakes_at = 0.0  # when `run` continues by itself, while it waits
        self._had_frames = False  # since `run` waited last
        self.end_reason = ""
        """Why the call ended; empty while it goes on."""
        self.came_late = anyio.Event()
        """Set if the sessions had all ended before the call."""

    @property
    def name(self) -> str:
        """Name of the call in log lines: the id of its first session."""
        return self.sessions[0].session

    @property
    def over(self) -> bool:
        """Whether no session of the call takes more audio."""
        return all(track.over for track in self._tracks)

    @property
    def has_audio(self) -> bool:
        """Whether the call ever had audio."""
        return any(track.has_audio for track in self._tracks)

    @property
    def waits_for_return(self) -> bool:
        """Whether the call lost its socket and waits for its producer."""
        return self._lost_at is not None and not self.end_reason

    def feed(self, record: CallInput) -> None:
        """Take one record; never waits. What follows the end is dropped.

        Raises `ProtocolError` for a second start, or for a track that the call does not have.
        """
        now = self._now()
        match record:
            case Started():
                raise ProtocolError("the call has already started; open a socket for each call")
            case Ended():
                self.end("ended")
                return
            case Audio():
                self._feed_audio(record, now)
                return
            case Marked():
                self._track(record.track).mark(record.mark)
            case TurnEnded():
                self._track(record.track).turn_end()
            case Configured():
                self._track(record.track).configure(record.config)
        self._changed.set()

    def disconnected(self, *, clean: bool) -> None:
        """Record that the socket is closed: a clean close ends the call, another one later."""
        if self.end_reason:
            return
        if clean:
            self.end("closed")
        elif self.over:
            self.end("over")
        else:
            grace_s = self._limits.grace_s
            log.warning("call %s: socket lost, waiting %g s for it to return", self.name, grace_s)
            self._lost_at = self._now()
            self._changed.set()

    def end(self, reason: str) -> None:
        """End the call's sessions behind the audio so far."""
        if not self.end_reason:
            self.end_reason = reason
            now = self._now()
            for track in self._tracks:
                track.end(now)
        self._changed.set()

    def fail(self) -> None:
        """Give the call up after an internal error: its tracks take no more."""
        self.end_reason = "internal"
        for track in self._tracks:
            track.close()

    def resume(self, sessions: tuple[SessionEntry, ...]) -> None:
        """Continue over a new socket. Raises `CallRefusedError` if its audio is of another kind."""
        for before, after in zip(self.sessions, sessions, strict=True):
            if (before.encoding, before.sample_rate) != (after.encoding, after.sample_rate):
                raise CallRefusedError(
                    409,
                    f"session {before.session} has {before.encoding} at {before.sample_rate} Hz; "
                    "use another id for other audio",
                )
        log.info("call %s: socket returned, continuing", self.name)
        self._lost_at = None
        for track in self._tracks:
            track.resume(self._now())
        self._changed.set()

    async def run(self) -> None:
        """Append what the call gets, until it has ended and all is appended."""
        while not all(track.finished for track in self._tracks):
            # Entries that arrive from here on set the event again.
            self._changed.clear()
            now = self._now()
            if self._grace_ends is not None and now >= self._grace_ends:
                self.end("lost")
            for track, appender in zip(self._tracks, self._appenders, strict=True):
                track.flush_due(now)
                await self._append(track, appender)
            await self._wait_for_work()
        # The sessions may be over long before the socket is closed.
        while not self.end_reason:
            if self._lost_at is not None:
                self.end("over")
                return
            self._changed.clear()
            await self._changed.wait()

    def _feed_audio(self, frame: Audio, now: float) -> None:
        track = self._track(frame.track)
        track.audio(frame, now)
        self._had_frames = True
        if track.ready or ((due := track.due) is not None and due < self._wakes_at):
            self._changed.set()

    def _track(self, index: int) -> Track:
        if not 0 <= index < len(self._tracks):
            raise ProtocolError(f"the call has no track {index}, only {len(self._tracks)} from 0")
        return self._tracks[index]

    @property
    def _grace_ends(self) -> float | None:
        if not self.waits_for_return or self._lost_at is None:
            return None
        return self._lost_at + self._limits.grace_s

    async def _append(self, track: Track, appender: SessionAppender) -> None:
        entries = track.take(MAX_BATCH)
        if not entries:
            return
        began = self._now()
        try:
            if self.end_reason == "lost" and entries[-1].end and not await appender.is_current():
                log.info("call %s: another gateway continues it", self.name)
                entries.pop()
            if entries:
                await appender.append(entries)
        except SessionOverError as error:
            level = logging.INFO if error.expected else logging.ERROR
            log.log(level, "call %s: dropping the rest of its audio: %s", self.name, error)
            track.close()
            if all(each.found_end for each in self._appenders):
                self.came_late.set()
            return
        self._counters.entries += len(entries)
        self._counters.bytes += sum(len(entry.audio) for entry in entries)
        self._counters.append_latency.observe(self._now() - began)

    async def _wait_for_work(self) -> None:
        """Wait until there is something to append, to flush or to end."""
        if any(track.ready for track in self._tracks):
            return
        if all(track.finished for track in self._tracks):
            return
        times = [self._grace_ends, *(track.due for track in self._tracks)]
        if self._had_frames:
            # No audio that arrives from here on is due before: most of it needs no other timer.
            times.append(self._now() + min(self._limits.chunk_ms, REORDER_MS) / 1000)
            self._had_frames = False
        self._wakes_at = min((time for time in times if time is not None), default=inf)
        with anyio.move_on_after(max(self._wakes_at - self._now(), 0)):
            await self._changed.wait()
