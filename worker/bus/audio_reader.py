"""The audio reader: one task that reads the audio streams of every session of a worker.

The reader starts at each session's own cursor, without a consumer group: reading is idempotent.
It skips a session that does not want audio now (its socket is down or slow); Redis is the buffer.
With few sessions reads block. With many, the reader polls the sessions whose next chunk is due.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup
from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from worker.bus.client.cluster import ClusterClient
from worker.bus.client.connection import READ_BLOCK_MS, RedisHealth, is_outage
from worker.bus.client.wire import Wires
from worker.core.polling import ClockOffset, PollQueue, PollSchedule
from worker.telemetry.logs import SessionName

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
"""Maximum size of the replies of a lane that are in flight, estimated from the largest recent
entry."""

MAX_READS_IN_FLIGHT = 3
"""Maximum number of reads of a lane at the same time: its master works on the next one while the
worker processes a reply."""

MIN_KEYS_PER_READ = 128
"""Minimum number of keys of a read that is one of several in flight."""

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
    audio_key: bytes
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
        self._wires = None if isinstance(redis, ClusterClient) else Wires(redis)
        self._health = health
        self._sessions: dict[bytes, AudioConsumer] = {}
        self._replaced: dict[bytes, list[AudioConsumer]] = {}
        self._polls = PollQueue[AudioConsumer]()
        self._wake = anyio.Event()
        self._largest = float(DEFAULT_ENTRY_BYTES)
        self._lanes: dict[str, LaneState] = {}
        self._awaited: set[str] = set()
        self._round_over = anyio.Event()

    def lane(self, name: str) -> LaneState:
        """Return the state of a lane."""
        return self._lanes.setdefault(name, LaneState())

    def add(self, session: AudioConsumer) -> None:
        """Start to read for `session`, instead of an earlier one with the same key.

        A worker that claims its session under a restored entry has two, until the first is fenced.
        """
        key = session.audio_key
        replaced = self._sessions.get(key)
        if replaced is not None:
            self._polls.remove(replaced)
            self._replaced.setdefault(key, []).append(replaced)
        self._sessions[key] = session
        self.poll_now(session)

    def remove(self, session: AudioConsumer) -> None:
        """Stop reading for `session`; continue for the one that it replaced, if that still runs.

        If Redis loses the later claim in a failover, the earlier session is the owner again.
        """
        key = session.audio_key
        replaced = self._replaced.pop(key, [])
        if self._sessions.get(key) is session:
            del self._sessions[key]
            self._polls.remove(session)
            if replaced:
                earlier = self._sessions[key] = replaced.pop()
                self.poll_now(earlier)
        elif session in replaced:
            replaced.remove(session)
        if replaced:
            self._replaced[key] = replaced

    def poll_now(self, session: AudioConsumer) -> None:
        """Poll `session` as soon as possible; `wants_audio` may have changed."""
        if self._sessions.get(session.audio_key) is session:
            session.poll_schedule.poll_now()
            self._polls.put(session)
            self._wake.set()

    async def run(self) -> None:
        """Read until cancelled."""
        for session in self._sessions.values():
            self._polls.put(session)  # an internal error may have ended their reads
        try:
            if self._wires is not None:
                # Not at the first session: the machine may be short of descriptors by then.
                await self._health.retry(self._wires.connect)
            async with anyio.create_task_group() as tasks:
                while True:
                    await self._poll(tasks)
        finally:
            if self._wires is not None:
                self._wires.close()

    async def _poll(self, tasks: TaskGroup) -> None:
        """Read the sessions that are due, then wait until the next poll."""
        began = time.monotonic()
        few = len(self._sessions) <= MAX_BLOCKING_KEYS
        wanting = self._all_wanting() if few else self._take_due(began)
        if not wanting and few:
            with anyio.move_on_after(READ_BLOCK_MS / 1000):
                await self._wake.wait()
            self._wake = anyio.Event()
            return
        lanes: dict[str, list[AudioConsumer]] = {}
        for session in wanting:
            lanes.setdefault(session.lane, []).append(session)
        block = READ_BLOCK_MS if few and len(lanes) == 1 else None
        if lanes:
            await self._read_lanes(lanes, block, tasks)
        pause = BLOCKING_DELAY_PER_KEY_S * (len(wanting) - 1) if block else POLL_INTERVAL_S
        await anyio.sleep(max(0.0, pause - (time.monotonic() - began)))

    def _all_wanting(self) -> list[AudioConsumer]:
        return [session for session in self._sessions.values() if session.wants_audio]

    def _take_due(self, now: float) -> list[AudioConsumer]:
        """Take the due sessions that want audio from the queue; the other ones stay due."""
        wanting = []
        for session in self._polls.take_due(now):
            if session.wants_audio:
                wanting.append(session)
            else:
                self._polls.put(session)
        return wanting

    async def _read_lanes(
        self, lanes: Mapping[str, Sequence[AudioConsumer]], block: int | None, tasks: TaskGroup
    ) -> None:
        """Read all lanes in parallel, except those whose last read still waits for their master."""
        self._round_over = anyio.Event()
        self._awaited = set()
        for name, sessions in lanes.items():
            if self.lane(name).reading:
                for session in sessions:
                    self._polls.put(session)
            else:
                self._awaited.add(name)
                tasks.start_soon(self._read_lane, name, sessions, block)
        with anyio.move_on_after(ROUND_TIMEOUT_S):
            await self._round_over.wait()

    def _stop_waiting(self, lane: str) -> None:
        self._awaited.discard(lane)
        if not self._awaited:
            self._round_over.set()

    async def _read_lane(
        self, name: str, sessions: Sequence[AudioConsumer], block: int | None
    ) -> None:
        """Read all sessions of a lane once, in one read or in several that are in flight."""
        lane = self.lane(name)
        lane.reading = True
        self._largest = max(float(DEFAULT_ENTRY_BYTES), self._largest * LARGEST_ENTRY_DECAY)
        in_flight = min(MAX_READS_IN_FLIGHT, max(1, len(sessions) // MIN_KEYS_PER_READ))
        reply_bytes = MAX_REPLY_BYTES / in_flight
        per_read = max(1, min(int(reply_bytes / self._largest), -(-len(sessions) // in_flight)))
        groups = iter([sessions[at : at + per_read] for at in range(0, len(sessions), per_read)])

        async def read_groups() -> None:
            for group in groups:
                await self._read(lane, group, block, reply_bytes)

        try:
            if in_flight == 1:
                await read_groups()
            else:
                async with anyio.create_task_group() as reads:
                    for _ in range(in_flight):
                        reads.start_soon(read_groups)
        finally:
            lane.reading = False
            self._stop_waiting(name)

    async def _read(
        self,
        lane: LaneState,
        sessions: Sequence[AudioConsumer],
        block: int | None,
        reply_bytes: float,
    ) -> None:
        """Read sessions of a lane, deliver their entries, and queue each for its next poll."""
        began = time.monotonic()
        rewinds = [session.rewinds for session in sessions]
        per_session = int(reply_bytes / self._largest / len(sessions))
        count = max(1, min(MAX_ENTRIES_PER_KEY, per_session))
        options = ("COUNT", count) if block is None else ("COUNT", count, "BLOCK", block)
        keys = [session.audio_key for session in sessions]
        command = (*options, "STREAMS", *keys, *(session.cursor for session in sessions))

        async def xread() -> Any:  # noqa: ANN401 - as in the client
            try:
                reply = await self._exchange(command)
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
                    await self._read(lane, [session], None, reply_bytes)
                return
            if _is_key_error(error):
                sessions[0].on_unreadable_key(error)
            else:
                self._health.failed(error)
                await anyio.sleep(ERROR_DELAY_S)
            if self._sessions.get(sessions[0].audio_key) is sessions[0]:
                self._polls.put(sessions[0])
            return
        reads = zip(sessions, rewinds, strict=True)
        self._deliver_reply(lane, reads, dict(reply or ()), began, count)

    async def _exchange(self, command: tuple[Any, ...]) -> Any:  # noqa: ANN401 - as in the client
        """Return the reply to XREAD, as hiredis parses it; `command` lacks only its name."""
        if self._wires is not None:
            (reply,) = await self._wires.exchange(pack_command(("XREAD", *command)), 1)
            if isinstance(reply, RedisError):
                raise reply
            return reply
        # A client converts the reply to a command of the name XREAD: that takes longer than to
        # read it.
        name, *arguments = command
        return await self._redis.execute_command(f"XREAD {name}", *arguments)  # type: ignore[no-untyped-call]

    def _deliver_reply(
        self,
        lane: LaneState,
        reads: Iterable[tuple[AudioConsumer, int]],
        found: Mapping[bytes, Entries],
        began: float,
        count: int,
    ) -> None:
        """Deliver the entries of each key, and queue each session for its next poll.

        `reads` are the sessions with their `rewinds` at the time of the read, `began`, which asked
        for `count` entries of each.
        """
        now = time.monotonic()
        backlog = min(BACKLOG_ENTRIES, count)
        for session, before in reads:
            if self._sessions.get(session.audio_key) is not session:
                continue  # removed
            if session.rewinds == before:
                entries = found.get(session.audio_key)
                poll_schedule = session.poll_schedule
                poll_schedule.last_polled_at = began
                if entries is None:
                    poll_schedule.on_empty(now)
                else:
                    self._deliver(session, entries, now)
                    if len(entries) >= backlog:
                        poll_schedule.poll_now()
                    else:
                        appended_at = _appended_at(lane.clock, entries[-1][0], now)
                        poll_schedule.on_entries(now, appended_at, session.chunk_s)
            self._polls.put(session)

    def _deliver(self, session: AudioConsumer, entries: Entries, now: float) -> None:
        """Pass entries to a session."""
        for _, fields in entries:
            if len(fields) == 2 and fields[0] == b"audio":  # most entries: four times as fast
                size = len(fields[1])
            else:
                size = max(map(len, fields))
            if size > self._largest:
                self._largest = float(size)
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


def _appended_at(clock: ClockOffset, entry_id: bytes, now: float) -> float:
    """Return when an entry that was just read was appended, on the monotonic clock.

    An id that the producer chose is not a time, and would corrupt the clock of the whole lane.
    """
    stamp_s = float(entry_id.partition(b"-")[0]) / 1000
    if abs(time.time() - stamp_s) > MAX_ID_SKEW_S:
        return now
    return clock.to_local(now, stamp_s)
