"""Consume turn events: async iterators over the turns streams of Redis.

`events` reads a stream by a position that the application stores. `group_events` reads in a
consumer group, whose positions Redis stores. Both continue after outages of Redis. They need
redis-py, msgspec and anyio, and neither the settings nor the telemetry of a worker.

    store = sqlite3.connect("calls.db")
    store.execute("CREATE TABLE IF NOT EXISTS turns (run, turn, text, PRIMARY KEY (run, turn))")
    store.execute("CREATE TABLE IF NOT EXISTS position (stream PRIMARY KEY, entry)")
    row = store.execute("SELECT entry FROM position").fetchone()
    async with connect("redis://localhost") as redis:
        async for received in events(redis, start="oldest", position=row and row[0]):
            with store:  # one transaction: the effect and the position
                event = received.event
                if isinstance(event, TurnEnd):
                    turn = (event.run, event.turn, event.transcript)
                    store.execute("INSERT OR REPLACE INTO turns VALUES (?, ?, ?)", turn)
                read = ("turns", received.entry_id)
                store.execute("INSERT OR REPLACE INTO position VALUES (?, ?)", read)

An event that Redis kept is never skipped in silence. What Redis lost is marked: see `Received`.
"""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, Literal, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from schemas.keys import Keys
from schemas.turns import Event, SessionEnded, decode_record, decode_turn_entry
from worker.bus.client.connection import RedisHealth, connect, describe, unmoved
from worker.core import stream_ids
from worker.errors import TurnbusError

__all__ = ["Received", "Start", "connect", "events", "group_events"]

log = logging.getLogger(__name__)

T = TypeVar("T")

Start = Literal["oldest", "next"]
"""Where to start without a position: at the oldest event that Redis keeps, or at the next one."""

BLOCK_MS: Final = 1_000
"""Maximum duration of a blocking read."""

BATCH_ENTRIES: Final = 100
"""Maximum number of entries of one read."""

GROUP_BATCH_ENTRIES: Final = 16
"""Maximum number of entries of one read in a group: they are the consumer's until it is done."""

MAX_RUNS: Final = 10_000
"""Maximum number of runs whose last `seq` is remembered; the longest unseen is forgotten."""


REMEMBERED_IDS: Final = 1_000
"""Number of the latest entry ids that are compared with the stream after a rollback."""


class Received(msgspec.Struct, frozen=True):
    """One event of a turns stream."""

    entry_id: str
    """Position after this event. Store it in one transaction with the effects of the event."""
    event: Event
    traceparent: str | None = None
    """W3C trace context of the worker's span, if workers trace."""
    repeated: bool = False
    """Whether an event with this `seq` was received before, or this one was delivered before.

    After a failover that lost writes, a session's latest numbers come again, perhaps with other
    words: the later event replaces the earlier one.
    """
    missing: int = 0
    """Number of events of this session that were lost directly before this one."""
    trimmed: bool = False
    """Whether events before this one may have been trimmed before this consumer, or its group, read
    them."""


async def events(
    redis: Redis,
    *,
    lane: str = "0",
    prefix: str = "stt",
    session: str | None = None,
    start: Start = "next",
    position: str | None = None,
) -> AsyncIterator[Received]:
    """Yield the events of a lane after a position, without end, in their order.

    `redis` is a client of redis-py that returns bytes, or one of `connect`, which also knows
    clusters and sentinels. `position` is the `entry_id` of the last event whose effects are
    stored. None stands for no position yet: `start` then decides.

    With `session`, the events are those of one session's own stream (`out=session`), and the
    iterator ends after `session.ended`.

    Waits and tries again while Redis is away. Raises `TurnbusError` if Redis rejects the login or
    the permissions, or if the client decodes responses, and `ValueError` if `position` is no id.
    """
    stream = _stream(prefix, lane, session)
    reader = _Reader(redis, stream)
    if position is None:
        cursor = stream_ids.START if start == "oldest" else await reader.newest()
    else:
        cursor = _checked(position)
        if session is not None and await reader.ends_at(cursor):
            return
    trimmed = position is not None and await reader.trimmed_after(cursor)
    if position is not None:
        cursor = await reader.rewound(cursor)
    while True:
        found = await reader.read(cursor)
        # Checked before they are yielded, and after every read: a client may reconnect by itself.
        if reader.interrupted:
            reader.interrupted = False
            trimmed = trimmed or await reader.trimmed_after(cursor)
        kept = await reader.rewound(cursor)
        if kept != cursor:
            cursor = kept
            continue
        for entry_id, fields in found:
            cursor = entry_id
            reader.remember(entry_id)
            received = reader.decode(entry_id, fields, trimmed=trimmed)
            if received is None:
                continue
            trimmed = False
            yield received
            if session is not None and isinstance(received.event, SessionEnded):
                return


async def group_events(
    redis: Redis,
    group: str,
    consumer: str,
    *,
    lane: str = "0",
    prefix: str = "stt",
    start: Start = "next",
    min_idle_s: float = 60.0,
) -> AsyncIterator[Received]:
    """Yield the events of a lane that Redis delivers to one consumer of a group, without end.

    An event is acknowledged when the iterator is asked for the next one, so after the body of the
    loop. If the body raises, is cancelled, or leaves the loop, the event stays pending. A consumer
    gets its own pending events first. It takes over events that another consumer has held for
    `min_idle_s`, so the body must take less time than that. Such events are marked `repeated`:
    their effects may be complete. `missing` is always 0, as other consumers receive events too.

    A group that does not exist is created where `start` says. A group that Redis lost is created
    again after the last event that this consumer received.

    The order of a session's events holds only while a group has one active consumer. To share the
    work, use several lanes. The names of consumers must differ, and stay over restarts.

    Waits for Redis and raises errors as `events` does.
    """
    stream = _stream(prefix, lane, None)
    reader = _GroupReader(_Reader(redis, stream), group, consumer, round(min_idle_s * 1_000))
    await reader.create(start)
    while True:
        for entry_id, received in await reader.batch():
            if received is not None:
                yield received
            await reader.acknowledge(entry_id)
            if reader.is_late:
                break  # other consumers may take the rest of the batch: ask what is left


class _Reader:
    """Reads one stream, through outages, and numbers what it read."""

    def __init__(self, redis: Redis, stream: str) -> None:
        options = redis.connection_pool.connection_kwargs
        if options.get("decode_responses"):
            raise TurnbusError("create the Redis client without decode_responses=True")
        timeout_s = options.get("socket_timeout")
        self.block_ms = BLOCK_MS if timeout_s is None else min(BLOCK_MS, int(timeout_s * 500))
        self.redis = redis
        self.stream = stream
        self.interrupted = False
        """Whether Redis was away since the iterator last checked what it missed meanwhile."""
        self._health = RedisHealth()
        self._sequence = _Sequence()
        self._read_ids: deque[str] = deque(maxlen=REMEMBERED_IDS)
        self._unknown: set[bytes] = set()

    async def call(self, command: Callable[[], Awaitable[T]]) -> T:
        """Return the reply to a command that may be repeated."""
        attempts = 0

        async def attempt() -> T:
            nonlocal attempts
            attempts += 1
            try:
                return await unmoved(command)
            except (AuthenticationError, NoPermissionError) as error:
                raise TurnbusError(f"Redis rejects this consumer: {describe(error)}") from error

        reply = await self._health.retry(attempt)
        self.interrupted = self.interrupted or attempts > 1
        return reply

    async def newest(self) -> str:
        """Return the id of the newest entry."""
        # Not `$`: events appended between two reads would be skipped.
        found: Any = await self.call(lambda: self.redis.xrevrange(self.stream, count=1))
        return found[0][0].decode() if found else stream_ids.START

    async def ends_at(self, position: str) -> bool:
        """Return whether the entry at a position is the last one of its session."""
        found: Any = await self.call(lambda: self.redis.xrange(self.stream, position, position))
        return bool(found) and found[0][1].get(b"type") == b"session.ended"

    async def trimmed_after(self, position: str) -> bool:
        """Return whether entries after a position may have been trimmed."""
        oldest: Any = await self.call(lambda: self.redis.xrange(self.stream, count=1))
        first = oldest[0][0].decode() if oldest else stream_ids.successor(await self._last_id())
        if stream_ids.order(first) <= stream_ids.order(stream_ids.successor(position)):
            return False
        log.warning("events of %s after %s may have been trimmed unread", self.stream, position)
        return True

    async def rewound(self, cursor: str) -> str:
        """Return the cursor, or an earlier one if a failover set the stream back behind it.

        Entries that follow there can have ids below the cursor. The last entry that was read and
        still exists is the earlier cursor; without one, it is the last id of the stream.
        """
        if self._read_ids and await self._has(cursor):
            return cursor  # the usual case: nothing before it is lost either
        last = await self._last_id()
        ids = await self._ids_from(self._read_ids[0]) if self._read_ids else []
        known = set(self._read_ids)
        kept = [*takewhile(known.__contains__, ids)]
        unread = ids[len(kept)] if len(kept) < len(ids) else last
        if min(stream_ids.order(last), stream_ids.order(unread)) >= stream_ids.order(cursor):
            return cursor
        log.warning("Redis lost events of %s: %s is its last id", self.stream, last)
        if not self._read_ids:
            return last
        earlier = kept[-1] if kept else stream_ids.predecessor(self._read_ids[0])
        self._read_ids = deque(kept, REMEMBERED_IDS)
        return earlier

    def remember(self, entry_id: str) -> None:
        """Record that an entry was read."""
        self._read_ids.append(entry_id)

    async def _has(self, entry_id: str) -> bool:
        found: Any = await self.call(lambda: self.redis.xrange(self.stream, entry_id, entry_id))
        return bool(found)

    async def _ids_from(self, first: str) -> Sequence[str]:
        found: Any = await self.call(
            lambda: self.redis.xrange(self.stream, first, count=REMEMBERED_IDS)
        )
        return [entry_id for entry_id, _ in _entries(found)]

    async def _last_id(self) -> str:
        """Return the largest id that the stream has given; `0-0` without a stream."""
        try:
            about: Any = await self.call(lambda: self.redis.xinfo_stream(self.stream))
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
            return stream_ids.START
        last = about["last-generated-id"]
        return last.decode() if isinstance(last, bytes) else str(last)

    async def read(self, cursor: str) -> Sequence[tuple[str, Mapping[bytes, bytes]]]:
        """Return the entries after a cursor; none if there are none for a while."""
        cursors: dict[Any, Any] = {self.stream: cursor}
        reply: Any = await self.call(
            lambda: self.redis.xread(cursors, count=BATCH_ENTRIES, block=self.block_ms)
        )
        return [*_rows(reply)]

    def decode(
        self, entry_id: str, fields: Mapping[bytes, bytes], *, trimmed: bool
    ) -> Received | None:
        """Return an entry as it is yielded; None if this version does not know its event.

        Such an event is skipped. Its number counts, and its type is logged once.
        """
        try:
            entry = decode_turn_entry(fields)
            number: Event | _Number = entry.event
        except msgspec.DecodeError as error:
            kind = fields.get(b"type", b"")
            if kind not in self._unknown and len(self._unknown) < MAX_RUNS:
                self._unknown.add(kind)
                log.warning("skipped entry %s of %s: %s", entry_id, self.stream, error)
            entry = None
            try:
                number = decode_record(fields.get(b"event", b""), _Number)
            except msgspec.DecodeError:
                return None
        repeated, missing = self._sequence.observe(number.session, number.run, number.seq)
        if entry is None:
            return None
        return Received(entry_id, entry.event, entry.traceparent, repeated, missing, trimmed)


class _GroupReader:
    """Reads one stream as a consumer of a group."""

    def __init__(self, reader: _Reader, group: str, consumer: str, min_idle_ms: int) -> None:
        self._reader = reader
        self._redis = reader.redis
        self._stream = reader.stream
        self._group = group
        self._consumer = consumer
        self._min_idle_ms = min_idle_ms
        self._patience_s = min_idle_ms / 2_000
        self._trimmed = False
        self._first_id = stream_ids.START
        """Where the group is created; the last event received, if there is one."""
        self._has_pending = True
        self._read_at = time.monotonic()
        self._reclaimed_at = float("-inf")

    async def create(self, start: Start) -> None:
        """Create the group, unless it exists."""
        if start == "next":
            self._first_id = await self._reader.newest()
        await self._create()

    @property
    def is_late(self) -> bool:
        """Whether the batch was read so long ago that another consumer may soon take it over."""
        late = time.monotonic() - self._read_at > self._patience_s
        self._has_pending = self._has_pending or late
        return late

    async def batch(self) -> Sequence[tuple[str, Received | None]]:
        """Return the next events: pending ones, abandoned ones, or else new ones."""
        try:
            if self._has_pending or self._reader.interrupted:
                # Redis may have delivered entries in a reply that was lost.
                self._reader.interrupted = False
                pending = await self._read("0", block_ms=None)
                self._has_pending = bool(pending)
                if pending:
                    return [*self._decoded(pending, delivered_before=True)]
            if time.monotonic() - self._reclaimed_at >= self._patience_s:
                abandoned = await self._reclaim()
                if abandoned:
                    return [*self._decoded(abandoned, delivered_before=True)]
            new = await self._read(">", block_ms=self._reader.block_ms)
            if new and await self._oldest_pending() != new[0][0]:
                # Redis delivered earlier entries in a reply that was lost, perhaps to the client,
                # which repeats commands. They come first.
                self._has_pending = True
                return []
            return [*self._decoded(new, delivered_before=False)]
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            log.warning("Redis lost the group %s of %s", self._group, self._stream)
            self._first_id = await self._reader.rewound(self._first_id)
            await self._create()
            return []

    async def acknowledge(self, entry_id: str) -> None:
        """Acknowledge an entry."""
        await self._reader.call(lambda: self._redis.xack(self._stream, self._group, entry_id))

    async def _create(self) -> None:
        try:
            await self._reader.call(
                lambda: self._redis.xgroup_create(
                    self._stream, self._group, id=self._first_id, mkstream=True
                )
            )
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
            last = await self._last_delivered()
            self._trimmed = last != stream_ids.START and await self._reader.trimmed_after(last)

    async def _last_delivered(self) -> str:
        """Return the last entry that the group delivered; `0-0` if there is none."""
        groups: Any = await self._reader.call(lambda: self._redis.xinfo_groups(self._stream))
        name = self._group.encode()
        ids = (each["last-delivered-id"] for each in groups if each["name"] == name)
        return next(ids, stream_ids.START.encode()).decode()

    async def _read(
        self, after: str, *, block_ms: int | None
    ) -> Sequence[tuple[str, Mapping[bytes, bytes]]]:
        cursors: dict[Any, Any] = {self._stream: after}
        reply: Any = await self._reader.call(
            lambda: self._redis.xreadgroup(
                self._group, self._consumer, cursors, count=GROUP_BATCH_ENTRIES, block=block_ms
            )
        )
        self._read_at = time.monotonic()
        return [*_rows(reply)]

    async def _oldest_pending(self) -> str | None:
        """Return the first entry that was delivered to this consumer and is not acknowledged."""
        found: Any = await self._reader.call(
            lambda: self._redis.xpending_range(
                self._stream, self._group, "-", "+", 1, self._consumer
            )
        )
        return found[0]["message_id"].decode() if found else None

    async def _reclaim(self) -> Sequence[tuple[str, Mapping[bytes, bytes]]]:
        """Take over entries that consumers have held for too long; note when none is left."""
        asked_at = time.monotonic()
        cursor = "0-0"
        while True:
            cursor, found = await self._claim_after(cursor)
            if cursor == "0-0":
                self._reclaimed_at = asked_at
                return found
            if found:
                return found

    async def _claim_after(
        self, cursor: str
    ) -> tuple[str, Sequence[tuple[str, Mapping[bytes, bytes]]]]:
        """Take over the next entries; return where to continue, `0-0` at the end, and them."""
        reply: Any = await self._reader.call(
            lambda: self._redis.xautoclaim(
                self._stream,
                self._group,
                self._consumer,
                self._min_idle_ms,
                cursor,
                count=GROUP_BATCH_ENTRIES,
            )
        )
        self._read_at = time.monotonic()
        for entry_id in reply[2] if len(reply) > 2 else ():
            self._note_trimmed(entry_id.decode())
        return reply[0].decode(), [*_entries(reply[1])]

    def _decoded(
        self, rows: Sequence[tuple[str, Mapping[bytes, bytes]]], *, delivered_before: bool
    ) -> Iterator[tuple[str, Received | None]]:
        """Yield entries with their events; those that were trimmed while pending have none."""
        for entry_id, fields in rows:
            self._first_id = max(self._first_id, entry_id, key=stream_ids.order)
            if not fields:
                self._note_trimmed(entry_id)
                yield entry_id, None
                continue
            received = self._reader.decode(entry_id, fields, trimmed=self._trimmed)
            if received is not None:
                repeated = received.repeated or delivered_before
                received = msgspec.structs.replace(received, repeated=repeated, missing=0)
                self._trimmed = False
            yield entry_id, received

    def _note_trimmed(self, entry_id: str) -> None:
        log.warning("entry %s of %s was trimmed while pending", entry_id, self._stream)
        self._trimmed = True


class _Number(msgspec.Struct, frozen=True):
    """What numbers an event of any type."""

    session: str
    run: str
    seq: int


class _Sequence:
    """The last and the highest `seq` of each run."""

    def __init__(self) -> None:
        self._runs: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()

    def observe(self, session: str, run: str, seq: int) -> tuple[bool, int]:
        """Return whether the number was received before, and how many are missing before it.

        The first number of a run that is not remembered says nothing.
        """
        last, highest = self._runs.pop((session, run), (seq - 1, seq - 1))
        self._runs[session, run] = (seq, max(seq, highest))
        if len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)
        return seq <= highest, max(0, seq - last - 1)


def _stream(prefix: str, lane: str, session: str | None) -> str:
    keys = Keys(prefix)
    return keys.turns(lane) if session is None else keys.session_turns(lane, session)


def _checked(position: str) -> str:
    try:
        stream_ids.order(position)
    except ValueError:
        raise ValueError(f"not a position, which is an entry_id: {position!r}") from None
    return position


def _rows(reply: Any) -> Iterator[tuple[str, Mapping[bytes, bytes]]]:  # noqa: ANN401 - as in the client
    """Yield the entries of a reply about one stream, in any form that redis-py returns."""
    if isinstance(reply, Mapping):
        for value in reply.values():
            nested = bool(value) and isinstance(value[0], list)
            yield from _entries(value[0] if nested else value)
    else:
        for _, batch in reply or ():
            yield from _entries(batch)


def _entries(batch: Any) -> Iterator[tuple[str, Mapping[bytes, bytes]]]:  # noqa: ANN401 - as in the client
    """Yield entries with text ids; those that no longer exist have no id or no fields."""
    for entry_id, fields in batch:
        if entry_id is not None:
            yield entry_id.decode(), fields or {}
