"""Inspection: the owner, state and lag of every session, for operators.

It only reads, and reads no audio except the first and last entry of each stream.
"""

import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from schemas.audio import Fields, session_id, session_lane
from schemas.keys import GROUP, RELEASED, Keys
from schemas.turns import decode_record
from worker.bus.client.connection import is_outage
from worker.bus.clock import EARLIEST_MS
from worker.bus.registry import read_workers
from worker.core import stream_ids
from worker.core.records import LedgerState, TurnState

PAGE_ENTRIES = 1_000
"""Maximum number of entries per read."""

SESSIONS_PER_PIPELINE = 100
"""Maximum number of sessions per pipeline: the reply holds two chunks of each."""

MAX_EVENT_PAGES = 20
"""Maximum number of pages of a lane's newest events to search for each session's last event."""

MAX_AHEAD_MS = 86_400_000
"""Maximum time that an id may be ahead of the local clock. A later id is not a time."""

State = Literal["waiting", "handed_over", "silent", "unconnected", "in_turn", "between_turns"]
"""`waiting`: no worker has claimed it yet; `handed_over`: released, and not claimed again yet;
`silent`: its owner sent no heartbeat for a lease, and will be replaced; `unconnected`: its owner
reported that it has no connection to the provider; else the owner is connected, in a turn or not.
"""

UNAVAILABLE = "stt_unavailable"
"""Code of the error that an owner publishes if it has no connection to the provider."""


class Announced(NamedTuple):
    """A valid entry of the sessions stream."""

    entry_id: str
    session: str
    lane: str


class SessionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One session of the sessions stream."""

    session: str
    lane: str
    entry: str
    owner: str
    """Id of the worker, or its consumer's name if it has no record; empty without an owner."""
    state: State
    provider: str
    """Provider of the last connection, as of the last commit; empty before the first."""
    lag_s: float
    """Seconds of audio that no published event covers yet; 0 if entry ids are not times."""
    lag_bytes: int
    """Estimated bytes of that audio, from the sizes of its first and last chunk."""
    turns: int
    """Number of turns begun."""
    last_event: str
    """Type of the newest event; empty if it is not among the newest events of its lane."""
    last_event_at: float
    """Unix seconds of the newest event; 0 if unknown."""


class _Checkpoint(msgspec.Struct, frozen=True):
    """The fields that are read from a session's state."""

    ledger: LedgerState = LedgerState()
    turns: TurnState = TurnState()
    connection: int = 0
    provider: str = ""


class _Pending(NamedTuple):
    consumer: str
    idle_ms: int


class _LastEvent(msgspec.Struct, frozen=True):
    """The fields that are read from a session's newest event, of any version."""

    type: str = ""
    at: float = 0.0
    connection: int = 0
    code: str = ""


async def announced(redis: Redis, keys: Keys) -> AsyncIterator[Announced]:
    """Yield every entry of the sessions stream, oldest first."""
    async for entry_id, fields in iter_entries(redis, keys.sessions):
        session, lane = session_id(fields), session_lane(fields)
        if session is not None and lane is not None:
            yield Announced(entry_id, session, lane)


async def session_owners(redis: Redis, keys: Keys) -> dict[str, str]:
    """Return the worker of each session that a running one owns."""
    pending = await _pending(redis, keys)
    names = {record.consumer: name for name, record in (await read_workers(redis, keys)).items()}
    return {
        each.session: names[owner.consumer]
        async for each in announced(redis, keys)
        if (owner := pending.get(each.entry_id)) is not None and owner.consumer in names
    }


async def list_sessions(redis: Redis, keys: Keys, lease_ms: int) -> list[SessionStatus]:
    """Return the status of every announced session, oldest first."""
    entries = [each async for each in announced(redis, keys)]
    pending = await _pending(redis, keys)
    names = {record.consumer: name for name, record in (await read_workers(redis, keys)).items()}
    last = await _last_events(redis, keys, entries)
    found = []
    for at in range(0, len(entries), SESSIONS_PER_PIPELINE):
        batch = entries[at : at + SESSIONS_PER_PIPELINE]
        async with redis.pipeline(transaction=False) as pipe:
            for each in batch:
                pipe.hget(keys.state(each.lane, each.session), "snapshot")
                pipe.xinfo_stream(keys.audio(each.lane, each.session))
            replies = await pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, RedisError) and is_outage(reply):
                raise reply
        for each, raw, audio in zip(batch, replies[::2], replies[1::2], strict=True):
            checkpoint = _decode_checkpoint(raw)
            lag_ms, lag_bytes = _lag(checkpoint.ledger, audio)
            event = last.get((each.lane, each.session), _LastEvent())
            owner = pending.get(each.entry_id)
            held = owner is not None and owner.consumer != RELEASED
            found.append(
                SessionStatus(
                    session=each.session,
                    lane=each.lane,
                    entry=each.entry_id,
                    owner=names.get(owner.consumer, owner.consumer) if owner and held else "",
                    state=_state(owner, checkpoint, event, lease_ms),
                    provider=checkpoint.provider,
                    lag_s=lag_ms / 1000,
                    lag_bytes=lag_bytes,
                    turns=checkpoint.turns.turn + (checkpoint.turns.open is not None),
                    last_event=event.type,
                    last_event_at=event.at,
                )
            )
    return found


def _state(
    owner: _Pending | None, checkpoint: _Checkpoint, event: _LastEvent, lease_ms: int
) -> State:
    if owner is None:
        return "waiting"
    if owner.consumer == RELEASED:
        return "handed_over"
    if owner.idle_ms > lease_ms:
        return "silent"
    if event.code == UNAVAILABLE and event.connection >= checkpoint.connection:
        return "unconnected"  # and no commit of a later connection exists
    return "between_turns" if checkpoint.turns.open is None else "in_turn"


def _decode_checkpoint(raw: bytes | RedisError | None) -> _Checkpoint:
    """Decode a checkpoint; an empty one if there is none, or if this version cannot decode it."""
    if not isinstance(raw, bytes):
        return _Checkpoint()
    try:
        return decode_record(raw, _Checkpoint)
    except msgspec.DecodeError:
        return _Checkpoint()


def _lag(ledger: LedgerState, audio: Mapping[str, Any] | RedisError) -> tuple[int, int]:
    """Return milliseconds and bytes of the audio after the committed position."""
    if isinstance(audio, RedisError) or not audio["length"]:
        return 0, 0
    (first, first_fields), (last, last_fields) = (audio["first-entry"], audio["last-entry"])
    oldest = max(first.decode(), ledger.committed.entry_id, key=stream_ids.order)
    oldest_ms, last_ms = stream_ids.milliseconds(oldest), stream_ids.milliseconds(last.decode())
    comparable = (oldest_ms < EARLIEST_MS) == (last_ms < EARLIEST_MS)
    times = comparable and last_ms <= time.time() * 1000 + MAX_AHEAD_MS
    ends = [len(fields.get(b"audio", b"")) for fields in (first_fields, last_fields)]
    sizes = [size for size in ends if size]  # the last entry of a session that ends has no audio
    chunks = audio["length"] - len(ends) + len(sizes)
    offset = ledger.committed.offset if oldest == ledger.committed.entry_id else 0
    lag_ms = last_ms - oldest_ms if times else 0
    return max(0, lag_ms), max(0, chunks * sum(sizes) // max(1, len(sizes)) - offset)


async def iter_entries(redis: Redis, stream: str) -> AsyncIterator[tuple[str, Fields]]:
    """Yield every entry of a stream, oldest first."""
    start = "-"
    while True:
        page: Any = await redis.xrange(stream, start, "+", count=PAGE_ENTRIES)
        for entry_id, fields in page:
            yield entry_id.decode(), fields
        if len(page) < PAGE_ENTRIES:
            return
        start = f"({page[-1][0].decode()}"


async def _pending(redis: Redis, keys: Keys) -> dict[str, _Pending]:
    """Return the consumer and idle time of each delivered entry, by entry id."""
    found: dict[str, _Pending] = {}
    start = "-"
    while True:
        try:
            page: Any = await redis.xpending_range(keys.sessions, GROUP, start, "+", PAGE_ENTRIES)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return found
        for row in page:
            owner = _Pending(
                row["consumer"].decode("utf-8", "replace"), row["time_since_delivered"]
            )
            found[row["message_id"].decode()] = owner
        if len(page) < PAGE_ENTRIES:
            return found
        start = f"({page[-1]['message_id'].decode()}"


async def _last_events(
    redis: Redis, keys: Keys, entries: Iterable[Announced]
) -> dict[tuple[str, str], _LastEvent]:
    """Return the newest event of each session, if it is within `MAX_EVENT_PAGES`."""
    found: dict[tuple[str, str], _LastEvent] = {}
    by_lane: dict[str, set[bytes]] = {}
    for each in entries:
        by_lane.setdefault(each.lane, set()).add(each.session.encode())
    for lane, sessions in by_lane.items():
        end = "+"
        for _ in range(MAX_EVENT_PAGES):
            page: Any = await redis.xrevrange(keys.turns(lane), end, "-", count=PAGE_ENTRIES)
            for _, fields in page:
                session = fields.get(b"session", b"")
                if session in sessions:
                    sessions.discard(session)
                    found[lane, session.decode()] = _event(fields)
            if not sessions or len(page) < PAGE_ENTRIES:
                break
            end = f"({page[-1][0].decode()}"
    return found


def _event(fields: Fields) -> _LastEvent:
    try:
        return decode_record(fields.get(b"event", b""), _LastEvent)
    except msgspec.DecodeError:
        return _LastEvent(type=fields.get(b"type", b"").decode("utf-8", "replace"))
