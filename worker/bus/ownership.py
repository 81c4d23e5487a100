"""Session intake: who owns which session, told by the pending list of `stt:sessions`."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas.audio import Fields, SessionEntry, encode_session
from schemas.keys import GROUP, RELEASED, Keys
from schemas.turns import (
    DeadLetter,
    Event,
    SessionStarted,
    WorkerRecord,
    encode_event,
    event_type,
)
from worker.bus import scripts
from worker.bus.fitness import reraise_taken
from worker.bus.workers import DuplicateWorkerCheck
from worker.core import stream_ids
from worker.telemetry.logs import SessionName

log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_DEAD_LETTERS = 10_000
MAX_TAKEOVERS = 50


class OwnedEntry(msgspec.Struct, frozen=True):
    """An entry of the sessions stream that is ours."""

    entry_id: str
    delivery_count: int
    """How often it was delivered; a later claim has a larger one."""
    fields: Fields
    owner: str = ""
    """Consumer it was taken over from."""


class Takeover(msgspec.Struct, frozen=True):
    """What was found of sessions that nobody runs any more."""

    owned: tuple[OwnedEntry, ...]
    """Those that are ours now."""
    lost: bool
    """Entries left the stream, and their sessions are to be found."""


class Fence(msgspec.Struct, frozen=True):
    """Proof of ownership that goes with every write of an owner."""

    entry_id: str
    delivery_count: int
    nonce: str
    """Drawn once per process."""


class Ownership(msgspec.Struct, frozen=True):
    """A session that is ours to run."""

    entry: SessionEntry
    fence: Fence
    run: str
    """Id of the entry that began the session."""
    fields: Fields
    """The session entry as it was written."""

    @property
    def name(self) -> SessionName:
        """The session, as log lines name it."""
        return SessionName(self.entry.session, self.entry.traceparent)


class ClaimResult(msgspec.Struct, frozen=True):
    """The answer to a claim; see `claim.lua` for the verdicts."""

    verdict: str
    seq: int
    """Of the last event; if the verdict is `stale`, the delivery count that is known."""
    snapshot: bytes
    run: str


class HeartbeatReport(msgspec.Struct, frozen=True):
    """What the pending list says of the sessions we believe to run."""

    taken: frozenset[str]
    missing: frozenset[str]
    unclaimed: tuple[tuple[str, int], ...]


class SessionOwnership:
    """Reads, claims, keeps, gives back and settles session entries for one consumer."""

    def __init__(self, redis: Redis, keys: Keys, consumer: str, nonce: str) -> None:
        self._redis = redis
        self._keys = keys
        self._kinds = {keys.sessions: "stream", keys.lost: "zset"}
        self._duplicates = DuplicateWorkerCheck(redis, keys)
        self.consumer = consumer
        self.nonce = nonce

    async def ensure_group(self) -> None:
        """Create the consumer group, from the first entry on, unless it exists."""
        try:
            await self._redis.xgroup_create(self._keys.sessions, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _run(self, script: scripts.Script, args: Sequence[scripts.Arg]) -> Any:  # noqa: ANN401 - each script's own reply
        """Run a script on the group."""
        keys = [self._keys.sessions, self._keys.lost]
        return await self._with_group(lambda: script(self._redis, keys, args))

    async def _with_group(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run `call`, on a new group if the group was destroyed.

        Raises `KeyTaken` if another program has the key of the sessions stream.
        """
        try:
            try:
                return await call()
            except ResponseError as error:
                if "NOGROUP" not in str(error) and "no such key" not in str(error):
                    raise
            await self.ensure_group()
            return await call()
        except ResponseError as error:
            await reraise_taken(error, self._redis, self._kinds)
            raise

    async def read_new(self, at_most: int, block_ms: int) -> list[OwnedEntry]:
        """Take up to `at_most` entries nobody has had yet, waiting up to `block_ms` for one."""
        streams: dict[Any, Any] = {self._keys.sessions: ">"}
        reply: Any = await self._with_group(
            lambda: self._redis.xreadgroup(
                GROUP, self.consumer, streams, count=at_most, block=block_ms
            )
        )
        rows = reply[0][1] if reply else []
        return [OwnedEntry(entry.decode(), 1, fields) for entry, fields in rows]

    async def take_over(self, at_most: int, lease_ms: int, dead: Iterable[str] = ()) -> Takeover:
        """Take over entries given back, and those of owners dead or silent for a lease."""
        rows, lost = await self._run(
            scripts.TAKE_OVER,
            [GROUP, self.consumer, RELEASED, lease_ms, min(at_most, MAX_TAKEOVERS), *dead],
        )
        owned = tuple(
            OwnedEntry(
                entry.decode(),
                count,
                dict(zip(flat[::2], flat[1::2], strict=True)),
                owner.decode("utf-8", "replace"),
            )
            for entry, count, flat, owner in rows
        )
        return Takeover(owned, bool(lost))

    async def claim(
        self, owned: OwnedEntry, session: SessionEntry, started: SessionStarted, snapshot: bytes
    ) -> ClaimResult:
        """Write our fence into the session's state. Safe to repeat."""
        verdict, seq, kept, run = await scripts.CLAIM(
            self._redis,
            self._keys.of_session(session.lane, session.session),
            [
                owned.entry_id,
                owned.delivery_count,
                self.nonce,
                owned.fields.get(b"run", owned.entry_id),
                msgspec.json.encode(encode_session(session)),
                session.session,
                encode_event(started),
                session.traceparent or "",
                session.out,
                snapshot,
            ],
        )
        return ClaimResult(verdict.decode(), seq, kept, run.decode())

    async def add_lane(self, lane: str) -> None:
        """Let consumers know that the lane is in use. Safe to repeat."""
        await self._write("SADD", self._keys.lanes, lane)

    async def raise_delivery_count(self, owned: OwnedEntry, count: int) -> OwnedEntry | None:
        """Raise an entry's delivery count; None if it is not ours any more. Safe to repeat."""
        raised = await self._run(
            scripts.RAISE_DELIVERY_COUNT,
            [GROUP, self.consumer, owned.entry_id, owned.delivery_count, count],
        )
        return msgspec.structs.replace(owned, delivery_count=count) if raised else None

    async def reject(
        self,
        run: str,
        session: str,
        lane: str,
        out: str,
        retention_s: int,
        events: Sequence[Event],
    ) -> bool:
        """Publish that a session is over before it began, unless it is known. Safe to repeat."""
        told = await scripts.REJECT(
            self._redis,
            self._keys.of_session(lane, session),
            [
                run,
                session,
                out,
                retention_s,
                *(part for event in events for part in (event_type(event), encode_event(event))),
            ],
        )
        return bool(told)

    async def last_entry(self) -> str:
        """Return the last id that the sessions stream gave out, of entries long gone too."""
        try:
            about: Any = await self._redis.xinfo_stream(self._keys.sessions)
        except ResponseError as error:
            await reraise_taken(error, self._redis, self._kinds)
            if "no such key" not in str(error):
                raise
            return stream_ids.START
        last: str = about["last-generated-id"].decode()
        return last

    async def is_ours(self, ownership: Ownership) -> bool:
        """Say whether a session's state names this owner, or is lost."""
        session, fence = ownership.entry, ownership.fence
        key = self._keys.state(session.lane, session.session)
        state: Any = await self._redis.hmget(key, "entry", "count", "nonce")
        ours = [str(part).encode() for part in (fence.entry_id, fence.delivery_count, fence.nonce)]
        return state[0] is None or state == ours

    async def restore_entry(self, ownership: Ownership, after: str) -> bool:
        """Put the entry of a live session back, if it vanished; return whether it had.

        Safe to repeat with the same `after`: the last id of the stream before the first try.
        """
        entry, run, fields = ownership.fence.entry_id, ownership.run, ownership.fields
        return await self.restore_unowned(entry, run, fields, after)

    async def restore_unowned(self, entry: str, run: str, fields: Fields, after: str) -> bool:
        """Do what `put_back` does for a session that is nobody's."""
        flat = {**fields, b"run": run.encode()}
        vanished = await self._run(
            scripts.RESTORE_ENTRY,
            [GROUP, entry, run, after, *(part for pair in flat.items() for part in pair)],
        )
        return bool(vanished)

    async def read_fields(self, entry: str) -> Fields | None:
        """Return the fields of an entry of the sessions stream, None if it is gone."""
        rows: Any = await self._redis.xrange(self._keys.sessions, entry, entry)
        return rows[0][1] if rows else None

    async def heartbeat(self, running: list[tuple[str, int]]) -> HeartbeatReport:
        """Keep the lease of every (entry, count) we run; learn which are ours no more."""
        taken, nowhere, orphans = await self._run(
            scripts.HEARTBEAT, [GROUP, self.consumer, *(part for pair in running for part in pair)]
        )
        return HeartbeatReport(
            frozenset(entry.decode() for entry in taken),
            frozenset(entry.decode() for entry in nowhere),
            tuple(
                (entry.decode(), int(count))
                for entry, count in zip(orphans[::2], orphans[1::2], strict=True)
            ),
        )

    async def release(self, owned: list[tuple[str, int]]) -> int:
        """Give entries back, for any worker with room to take at once; return how many were ours.

        One that vanished from the stream is not.
        """
        given: int = await self._run(
            scripts.RELEASE,
            [GROUP, self.consumer, RELEASED, *(part for pair in owned for part in pair)],
        )
        return given

    async def complete(self, entry: str) -> None:
        """Remove an entry whose session is over, or never was. Safe to repeat."""
        await self._with_group(
            lambda: scripts.COMPLETE(self._redis, [self._keys.sessions], [GROUP, entry])
        )

    async def put_dead_letter(self, dead: DeadLetter) -> str:
        """Append a refused entry to the dead stream; return its id there."""
        kept: Any = await self._redis.xadd(
            self._keys.dead,
            {name: str(value) for name, value in msgspec.structs.asdict(dead).items()},
            maxlen=MAX_DEAD_LETTERS,
            approximate=True,
        )
        return str(kept.decode())

    async def register(self, worker_id: str, record: WorkerRecord) -> None:
        """Publish this worker's record; warn of another process with the same id."""
        await self._duplicates.check(worker_id, record)
        await self._write("HSET", self._keys.workers, worker_id, msgspec.json.encode(record))

    async def _write(self, command: str, key: str, *args: str | bytes) -> None:
        """Write a little bookkeeping, also to a full Redis."""
        await self._write_best_effort(scripts.WRITE, key, [command, *args])

    async def _write_best_effort(
        self, script: scripts.Script, key: str, args: Sequence[scripts.Arg]
    ) -> None:
        """Run a script on what we can do without: a key of another type is told, and left."""
        try:
            await script(self._redis, [key], args)
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            log.warning("%s is not turnbus's and is left alone: %s", key, error)

    async def consumers(self, idle_s: float) -> dict[str, bool]:
        """Return every consumer of the group, and whether it is idle that long and owns nothing."""
        rows: Any = await self._with_group(
            lambda: self._redis.xinfo_consumers(self._keys.sessions, GROUP)
        )
        return {
            row["name"].decode("utf-8", "replace"): not row["pending"]
            and row["idle"] > idle_s * 1000
            for row in rows
        }

    async def delete_consumer(self, consumer: str) -> bool:
        """Remove a consumer unless it owns entries; return whether it is gone."""
        return bool(await self._run(scripts.DELETE_CONSUMER, [GROUP, consumer]))

    async def delete_record(self, worker_id: str, consumer: str) -> None:
        """Remove a worker's record if it is this consumer's."""
        await self._write_best_effort(
            scripts.DELETE_RECORD, self._keys.workers, [worker_id, consumer]
        )
