"""The census: who owns which session and how far it is, asked from outside.

Reads only, and no audio but the two entries at the ends of each stream.
"""

import time
from collections.abc import AsyncIterator, Iterable, Mapping
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from schemas.audio import Fields, session_id, session_lane
from schemas.keys import GROUP, RELEASED, Keys
from schemas.turns import WorkerRecord
from worker.bus.client.connection import is_outage
from worker.bus.clock import EARLIEST_MS
from worker.bus.records import decode_record
from worker.core import stream_ids
from worker.core.ledger import LedgerState
from worker.core.turn_tracker import TurnState

PAGE = 1_000
"""Entries read at once."""

SESSIONS_AT_ONCE = 100
"""Sessions asked about in one pipeline: a reply holds two chunks of each."""

MAX_EVENT_PAGES = 20
"""Pages of a lane's newest events in which each session's last one is looked for."""

DAY_MS = 86_400_000
"""An id that is further ahead of this machine's clock is no time."""

T = TypeVar("T")
State = Literal["waiting", "handed_over", "silent", "unconnected", "in_turn", "between_turns"]
"""`waiting`: no worker has it yet; `handed_over`: given back, and not taken yet; `silent`: its
owner has not spoken for a lease, and will be replaced; `unconnected`: its owner told that it gets
no connection to the service, and nothing since; else the owner listens, in a turn or not."""

UNAVAILABLE = "stt_unavailable"
"""Code of the error by which a session's owner tells that it has no connection to the service."""


class Announced(NamedTuple):
    """An entry of the sessions stream whose session can be told."""

    entry: str
    session: str
    lane: str


class SessionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One session of the sessions stream."""

    session: str
    lane: str
    entry: str
    owner: str
    """Id of the worker, or its consumer's name if it left no record; empty without an owner."""
    state: State
    lag_s: float
    """Length of the audio that no published event covers yet, by the ids of its entries; 0 if those
    are not times."""
    lag_bytes: int
    """About how many bytes that is, judged by the first and the last of its chunks."""
    turns: int
    """Turns begun."""
    last_event: str
    """Type of the newest event; empty if it is not among the newest of its lane."""
    last_event_at: float
    """Unix seconds; 0 if unknown."""


class _Snapshot(msgspec.Struct, frozen=True):
    """What is read of a session's state."""

    ledger: LedgerState = LedgerState()
    turns: TurnState = TurnState()
    connection: int = 0


class _Pending(NamedTuple):
    consumer: str
    idle_ms: int


class _LastEvent(msgspec.Struct, frozen=True):
    """What is read of the newest event of a session, of whatever version."""

    type: str = ""
    at: float = 0.0
    connection: int = 0
    code: str = ""


async def announced(redis: Redis, keys: Keys) -> AsyncIterator[Announced]:
    """Yield every entry of the sessions stream, oldest first."""
    async for entry, fields in iter_entries(redis, keys.sessions):
        session, lane = session_id(fields), session_lane(fields)
        if session is not None and lane is not None:
            yield Announced(entry, session, lane)


async def read_workers(redis: Redis, keys: Keys) -> dict[str, WorkerRecord]:
    """Return the records of all workers by their ids, without those of other versions."""
    rows: Any = await redis.hgetall(keys.workers)
    records = {}
    for worker_id, raw in rows.items():
        try:
            records[worker_id.decode()] = decode_record(raw, WorkerRecord)
        except (UnicodeDecodeError, msgspec.DecodeError):
            continue  # neither ours to show nor to judge
    return records


async def list_sessions(redis: Redis, keys: Keys, lease_ms: int) -> list[SessionStatus]:
    """Return the status of every session there is, oldest first."""
    entries = [each async for each in announced(redis, keys)]
    pending = await _pending(redis, keys)
    names = {record.consumer: name for name, record in (await read_workers(redis, keys)).items()}
    last = await _last_events(redis, keys, entries)
    found = []
    for batch in _batches(entries, SESSIONS_AT_ONCE):
        async with redis.pipeline(transaction=False) as pipe:
            for each in batch:
                pipe.hget(keys.state(each.lane, each.session), "snapshot")
                pipe.xinfo_stream(keys.audio(each.lane, each.session))
            replies = await pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, RedisError) and is_outage(reply):
                raise reply
        for each, raw, audio in zip(batch, replies[::2], replies[1::2], strict=True):
            snapshot = _snapshot(raw)
            lag_ms, lag_bytes = _lag(snapshot.ledger, audio)
            event = last.get((each.lane, each.session), _LastEvent())
            owner = pending.get(each.entry)
            held = owner is not None and owner.consumer != RELEASED
            found.append(
                SessionStatus(
                    session=each.session,
                    lane=each.lane,
                    entry=each.entry,
                    owner=names.get(owner.consumer, owner.consumer) if owner and held else "",
                    state=_state(owner, snapshot, event, lease_ms),
                    lag_s=lag_ms / 1000,
                    lag_bytes=lag_bytes,
                    turns=snapshot.turns.turn + (snapshot.turns.open is not None),
                    last_event=event.type,
                    last_event_at=event.at,
                )
            )
    return found


def _state(owner: _Pending | None, snapshot: _Snapshot, event: _LastEvent, lease_ms: int) -> State:
    if owner is None:
        return "waiting"
    if owner.consumer == RELEASED:
        return "handed_over"
    if owner.idle_ms > lease_ms:
        return "silent"
    if event.code == UNAVAILABLE and event.connection >= snapshot.connection:
        return "unconnected"  # and nothing is committed of a later connection
    return "between_turns" if snapshot.turns.open is None else "in_turn"


def _snapshot(raw: bytes | RedisError | None) -> _Snapshot:
    """Read a state; an empty one if there is none, or none that this version reads."""
    if not isinstance(raw, bytes):
        return _Snapshot()
    try:
        return decode_record(raw, _Snapshot)
    except msgspec.DecodeError:
        return _Snapshot()


def _lag(ledger: LedgerState, audio: Mapping[str, Any] | RedisError) -> tuple[int, int]:
    """Return milliseconds and bytes of what follows the committed position."""
    if isinstance(audio, RedisError) or not audio["length"]:
        return 0, 0
    (first, first_fields), (last, last_fields) = (audio["first-entry"], audio["last-entry"])
    oldest = max(first.decode(), ledger.committed.entry_id, key=stream_ids.order)
    oldest_ms, last_ms = stream_ids.milliseconds(oldest), stream_ids.milliseconds(last.decode())
    alike = (oldest_ms < EARLIEST_MS) == (last_ms < EARLIEST_MS)
    times = alike and last_ms <= time.time() * 1000 + DAY_MS
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
        page: Any = await redis.xrange(stream, start, "+", count=PAGE)
        for entry, fields in page:
            yield entry.decode(), fields
        if len(page) < PAGE:
            return
        start = f"({page[-1][0].decode()}"


async def _pending(redis: Redis, keys: Keys) -> dict[str, _Pending]:
    """Return who owns each entry that was delivered."""
    found: dict[str, _Pending] = {}
    start = "-"
    while True:
        try:
            page: Any = await redis.xpending_range(keys.sessions, GROUP, start, "+", PAGE)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return found
        for row in page:
            owner = _Pending(
                row["consumer"].decode("utf-8", "replace"), row["time_since_delivered"]
            )
            found[row["message_id"].decode()] = owner
        if len(page) < PAGE:
            return found
        start = f"({page[-1]['message_id'].decode()}"


async def _last_events(
    redis: Redis, keys: Keys, entries: Iterable[Announced]
) -> dict[tuple[str, str], _LastEvent]:
    """Return the newest event of each session, as far as they are near."""
    found: dict[tuple[str, str], _LastEvent] = {}
    by_lane: dict[str, set[bytes]] = {}
    for each in entries:
        by_lane.setdefault(each.lane, set()).add(each.session.encode())
    for lane, sessions in by_lane.items():
        end = "+"
        for _ in range(MAX_EVENT_PAGES):
            page: Any = await redis.xrevrange(keys.turns(lane), end, "-", count=PAGE)
            for _, fields in page:
                session = fields.get(b"session", b"")
                if session in sessions:
                    sessions.discard(session)
                    found[lane, session.decode()] = _event(fields)
            if not sessions or len(page) < PAGE:
                break
            end = f"({page[-1][0].decode()}"
    return found


def _event(fields: Fields) -> _LastEvent:
    try:
        return decode_record(fields.get(b"event", b""), _LastEvent)
    except msgspec.DecodeError:
        return _LastEvent(type=fields.get(b"type", b"").decode("utf-8", "replace"))


def _batches(items: Iterable[T], size: int) -> Iterable[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
