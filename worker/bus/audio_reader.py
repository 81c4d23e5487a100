"""The audio reader: one task that reads the audio streams of every session of a worker.

The reader starts at each session's own cursor, without a consumer group: reading is idempotent.
It skips a session that does not want audio now (its socket is down or slow); Redis is the buffer.
With few sessions reads block. With many, the reader polls the sessions whose next chunk is due.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from worker.bus.client.connection import (
    READ_BLOCK_MS,
    RedisHealth,
    is_outage,
)
from worker.core import stream_ids
from worker.core.polling import ClockOffset, PollSchedule
from worker.telemetry.logs import SessionName
from worker.write_burst import WriteBurst

log = logging.getLogger(__name__)

MAX_BLOCKING_KEYS = 16
"""Maximum number of keys of a blocking read. Each key adds to the server's cost of a wake-up."""

POLL_INTERVAL_S = 0.015
"""Interval between polls of more keys: one poll reads the chunks of the whole interval."""

BLOCKING_DELAY_PER_KEY_S = 0.0002
"""Delay between blocking reads for each session beyond the first, so that a read of many keys
returns more than one chunk."""

MAX_ENTRIES_PER_KEY = 32
"""Maximum number of entries of one session per read."""

MAX_REPLY_BYTES = 8 * 1024 * 1024
"""Maximum size of a reply in bytes, estimated from the largest recent entry."""

BACKLOG_ENTRIES = 3
"""Minimum number of entries of one session in a reply after which it is polled again at once."""

DEFAULT_ENTRY_BYTES = 4096
LARGEST_ENTRY_DECAY = 0.99
"""Factor of the largest recent entry's size after each round of reads."""

MAX_ID_SKEW_S = 3_600.0
"""Maximum difference between an id and the local clock. An id beyond it is not a time."""

ERROR_DELAY_S = 0.2
"""Delay before a session is read again after an error that is not specific to its key."""

ROUND_TIMEOUT_S = 0.5
"""Timeout for the reads of a round: the master of one lane may fail while others answer."""

Entries = list[list[Any]]
"""Entries as hiredis returns them: an id, and a list of field names and values in turn."""


class AudioConsumer(Protocol):
    """A session as the reader sees it."""

    name: SessionName
    """Name of the session in log lines."""
    lane: str
    """Lane of the session. One command reads the streams of one lane."""
    audio_key: str
    """Key of the session's audio stream."""

    rewinds: int
    """Number that changes whenever the cursor moves back; it makes earlier reads invalid."""
    poll_schedule: PollSchedule
    """Schedule of the session's polls."""

    @property
    def cursor(self) -> str:
        """Entry id after which to read."""

    @property
    def chunk_s(self) -> float:
        """Duration of the last chunk that was fed, in seconds."""

    @property
    def wants_audio(self) -> bool:
        """Whether the session accepts audio now."""

    def feed(self, entries: Entries, now: float) -> None:
        """Accept entries that follow the cursor."""

    def on_unreadable_key(self, error: ResponseError) -> None:
        """Handle a key that cannot be read as a stream."""

    def fail(self) -> None:
        """End the session after an internal error."""


class LaneState:
    """Clock offset and availability of one lane."""

    def __init__(self) -> None:
        self.clock = ClockOffset()
        self.reading = False
        self.failing = False
        self.up_since = 0.0
        """Monotonic time from which the lane is readable; the last such time during an outage."""

    def answered(self) -> None:
        """Record a reply."""
        if self.failing:
            self.failing = False
            self.up_since = time.monotonic()


class AudioReader:
    """Reads the audio of all added sessions."""

    def __init__(self, redis: Redis, health: RedisHealth) -> None:
        self._redis = redis
        self._health = health
        self._sessions: dict[str, AudioConsumer] = {}
        self._wake = anyio.Event()
        self._largest = float(DEFAULT_ENTRY_BYTES)
        self._turn = 0
        self._lanes: dict[str, LaneState] = {}
        self._awaited: set[str] = set()
        self._round_over = anyio.Event()
        self.write_burst = WriteBurst()
        """Holds the audio that the entries of one reply cause, for all sessions."""

    def lane(self, name: str) -> LaneState:
        """Return the state of a lane."""
        return self._lanes.setdefault(name, LaneState())

    def add(self, session: AudioConsumer) -> None:
        """Start to read for `session`."""
        self._sessions[session.audio_key] = session
        self.wake()

    def remove(self, session: AudioConsumer) -> None:
        """Stop reading for `session`."""
        if self._sessions.get(session.audio_key) is session:
            del self._sessions[session.audio_key]

    def wake(self) -> None:
        """Check again which sessions want audio."""
        self._wake.set()

    async def run(self) -> None:
        """Read until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                began = time.monotonic()
                sessions = self._sessions.values()
                few = len(sessions) <= MAX_BLOCKING_KEYS
                wanting = [
                    each
                    for each in sessions
                    if (few or each.poll_schedule.next_at <= began) and each.wants_audio
                ]
                if not wanting and few:
                    with anyio.move_on_after(READ_BLOCK_MS / 1000):
                        await self._wake.wait()
                    self._wake = anyio.Event()
                    continue
                lanes: dict[str, list[AudioConsumer]] = {}
                for session in wanting:
                    lanes.setdefault(session.lane, []).append(session)
                block = READ_BLOCK_MS if few and len(lanes) == 1 else None
                if lanes:
                    await self._read_lanes(lanes, block, tasks)
                pause = BLOCKING_DELAY_PER_KEY_S * (len(wanting) - 1) if block else POLL_INTERVAL_S
                await anyio.sleep(max(0.0, pause - (time.monotonic() - began)))

    async def _read_lanes(
        self, lanes: Mapping[str, Sequence[AudioConsumer]], block: int | None, tasks: TaskGroup
    ) -> None:
        """Read all lanes in parallel, except those whose last read still waits for their master."""
        self._round_over = anyio.Event()
        self._awaited = {name for name in lanes if not self.lane(name).reading}
        for name in [*self._awaited]:
            tasks.start_soon(self._read_lane, name, lanes[name], block)
        with anyio.move_on_after(ROUND_TIMEOUT_S):
            await self._round_over.wait()

    def _stop_waiting(self, lane: str) -> None:
        self._awaited.discard(lane)
        if not self._awaited:
            self._round_over.set()

    async def _read_lane(
        self, name: str, sessions: Sequence[AudioConsumer], block: int | None
    ) -> None:
        """Read all sessions of a lane once, each time from another one on."""
        lane = self.lane(name)
        lane.reading = True
        self._turn += 1
        first = self._turn % len(sessions)
        rotated = [*sessions[first:], *sessions[:first]]
        self._largest = max(float(DEFAULT_ENTRY_BYTES), self._largest * LARGEST_ENTRY_DECAY)
        per_read = max(1, int(MAX_REPLY_BYTES / self._largest))
        try:
            for at in range(0, len(rotated), per_read):
                await self._read(lane, rotated[at : at + per_read], block)
        finally:
            lane.reading = False
            self._stop_waiting(name)

    async def _read(
        self, lane: LaneState, sessions: Sequence[AudioConsumer], block: int | None
    ) -> None:
        began = time.monotonic()
        rewinds = [session.rewinds for session in sessions]
        per_session = int(MAX_REPLY_BYTES / self._largest / len(sessions))
        count = max(1, min(MAX_ENTRIES_PER_KEY, per_session))
        # With this name the client does not convert the reply: it takes longer than to read it.
        command = (
            "XREAD COUNT",
            count,
            *(() if block is None else ("BLOCK", block)),
            "STREAMS",
            *(session.audio_key for session in sessions),
            *(session.cursor for session in sessions),
        )

        async def xread() -> Any:  # noqa: ANN401 - as in the client
            try:
                reply: Any = await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as error:
                if is_outage(error):
                    lane.failing = True
                    self._stop_waiting(sessions[0].lane)
                raise
            lane.answered()
            return reply

        try:
            reply = await self._health.retry(xread)
        except ResponseError as error:
            if len(sessions) > 1:
                # One key of another type fails the whole command: find it.
                for session in sessions:
                    await self._read(lane, [session], None)
            elif _is_key_error(error):
                sessions[0].on_unreadable_key(error)
            else:
                self._health.failed(error)
                await anyio.sleep(ERROR_DELAY_S)
            return
        now = time.monotonic()
        found: dict[bytes, Any] = dict(reply or ())
        with self.write_burst:
            for session, before in zip(sessions, rewinds, strict=True):
                if (
                    session.rewinds != before
                    or self._sessions.get(session.audio_key) is not session
                ):
                    continue
                entries = found.get(session.audio_key.encode())
                poll_schedule = session.poll_schedule
                poll_schedule.last_polled_at = began
                if entries is None:
                    poll_schedule.on_empty(now)
                    continue
                self._deliver(session, entries, now)
                if len(entries) >= min(BACKLOG_ENTRIES, count):
                    poll_schedule.poll_now()
                else:
                    appended_at = _appended_at(lane.clock, entries[-1][0].decode(), now)
                    poll_schedule.on_entries(now, appended_at, session.chunk_s)

    def _deliver(self, session: AudioConsumer, entries: Entries, now: float) -> None:
        """Pass entries to a session."""
        for _, fields in entries:
            size = max(map(len, fields))
            if size > self._largest:
                self._largest = size
        try:
            session.feed(entries, now)
        except Exception:  # an internal error must not end the other sessions
            log.exception("%s: internal error in its audio, stopping", session.name)
            session.fail()


def _is_key_error(error: ResponseError) -> bool:
    """Return whether a key cannot be read until an operator acts.

    Any other error, of this or a later version of Redis, does not end the session.
    """
    return isinstance(error, NoPermissionError) or str(error).startswith("WRONGTYPE")


def _appended_at(clock: ClockOffset, entry_id: str, now: float) -> float:
    """Return when an entry that was just read was appended, on the monotonic clock.

    An id that the producer chose is not a time, and would corrupt the clock of the whole lane.
    """
    stamp_s = stream_ids.milliseconds(entry_id) / 1000
    if abs(time.time() - stamp_s) > MAX_ID_SKEW_S:
        return now
    return clock.to_local(now, stamp_s)
