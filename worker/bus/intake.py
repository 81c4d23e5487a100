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
    DeadEntry,
    SessionStarted,
    TurnEvent,
    WorkerRecord,
    encode_event,
    event_type,
)
from worker.bus import scripts
from worker.bus.fitness import reraise_taken
from worker.bus.namesakes import Namesakes
from worker.core import ids
from worker.telemetry.logs import SessionName

log = logging.getLogger(__name__)

T = TypeVar("T")
DEAD_MAXLEN = 10_000
ADOPT_AT_MOST = 50


class Owned(msgspec.Struct, frozen=True):
    """An entry of the sessions stream that is ours."""

    entry: str
    count: int
    """How often it was delivered; a later claim has a larger one."""
    fields: Fields
    owner: str = ""
    """Consumer it was taken over from."""


class Adopted(msgspec.Struct, frozen=True):
    """What was found of sessions that nobody runs any more."""

    owned: tuple[Owned, ...]
    """Those that are ours now."""
    lost: bool
    """Entries left the stream, and their sessions are to be found."""


class Fence(msgspec.Struct, frozen=True):
    """Proof of ownership that goes with every write of an owner."""

    entry: str
    count: int
    nonce: str
    """Drawn once per process."""


class Ownership(msgspec.Struct, frozen=True):
    """A session that is ours to run."""

    session: SessionEntry
    fence: Fence
    run: str
    """Id of the entry that began the session."""
    fields: Fields
    """The session entry as it was written."""

    @property
    def name(self) -> SessionName:
        """The session, as log lines name it."""
        return SessionName(self.session.session, self.session.traceparent)


class Claim(msgspec.Struct, frozen=True):
    """The answer to a claim; see `claim.lua` for the verdicts."""

    verdict: str
    seq: int
    """Of the last event; if the verdict is `stale`, the delivery count that is known."""
    snapshot: bytes
    run: str


class HeartbeatReport(msgspec.Struct, frozen=True):
    """What the pending list says of the sessions we believe to run."""

    taken: frozenset[str]
    nowhere: frozenset[str]
    orphans: tuple[tuple[str, int], ...]


class Intake:
    """Reads, claims, keeps, gives back and settles session entries for one consumer."""

    def __init__(self, redis: Redis, keys: Keys, consumer: str, nonce: str) -> None:
        self._redis = redis
        self._keys = keys
        self._kinds = {keys.sessions: "stream", keys.lost: "zset"}
        self._namesakes = Namesakes(redis, keys)
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
        return await self._grouped(lambda: script(self._redis, keys, args))

    async def _grouped(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run `call`; on a new group, where somebody destroyed ours.

        Raises `KeyTaken` if another program has the sessions stream's key.
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

    async def read_new(self, at_most: int, block_ms: int) -> list[Owned]:
        """Take up to `at_most` entries nobody has had yet, waiting up to `block_ms` for one."""
        streams: dict[Any, Any] = {self._keys.sessions: ">"}
        reply: Any = await self._grouped(
            lambda: self._redis.xreadgroup(
                GROUP, self.consumer, streams, count=at_most, block=block_ms
            )
        )
        rows = reply[0][1] if reply else []
        return [Owned(entry.decode(), 1, fields) for entry, fields in rows]

    async def adopt(self, at_most: int, lease_ms: int, dead: Iterable[str] = ()) -> Adopted:
        """Take over entries given back, and those of owners dead or silent for a lease."""
        rows, lost = await self._run(
            scripts.ADOPT,
            [GROUP, self.consumer, RELEASED, lease_ms, min(at_most, ADOPT_AT_MOST), *dead],
        )
        owned = tuple(
            Owned(
                entry.decode(),
                count,
                dict(zip(flat[::2], flat[1::2], strict=True)),
                owner.decode("utf-8", "replace"),
            )
            for entry, count, flat, owner in rows
        )
        return Adopted(owned, bool(lost))

    async def claim(
        self, owned: Owned, session: SessionEntry, started: SessionStarted, snapshot: bytes
    ) -> Claim:
        """Write our fence into the session's state. Safe to repeat."""
        verdict, seq, kept, run = await scripts.CLAIM(
            self._redis,
            self._keys.of_session(session.lane, session.session),
            [
                owned.entry,
                owned.count,
                self.nonce,
                owned.fields.get(b"run", owned.entry),
                msgspec.json.encode(encode_session(session)),
                session.session,
                encode_event(started),
                session.traceparent or "",
                session.out,
                snapshot,
            ],
        )
        return Claim(verdict.decode(), seq, kept, run.decode())

    async def list_lane(self, lane: str) -> None:
        """Let consumers know that the lane is in use. Safe to repeat."""
        await self._write("SADD", self._keys.lanes, lane)

    async def outbid(self, owned: Owned, count: int) -> Owned | None:
        """Raise an entry's delivery count; None if it is not ours any more. Safe to repeat."""
        raised = await self._run(
            scripts.OUTBID, [GROUP, self.consumer, owned.entry, owned.count, count]
        )
        return msgspec.structs.replace(owned, count=count) if raised else None

    async def refuse(
        self,
        run: str,
        session: str,
        lane: str,
        out: str,
        retention_s: int,
        events: Sequence[TurnEvent],
    ) -> bool:
        """Publish that a session is over before it began, unless it is known. Safe to repeat."""
        told = await scripts.REFUSE(
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
            return ids.START
        last: str = about["last-generated-id"].decode()
        return last

    async def is_ours(self, ownership: Ownership) -> bool:
        """Say whether a session's state names this owner, or is lost."""
        session, fence = ownership.session, ownership.fence
        key = self._keys.state(session.lane, session.session)
        state: Any = await self._redis.hmget(key, "entry", "count", "nonce")
        ours = [str(part).encode() for part in (fence.entry, fence.count, fence.nonce)]
        return state[0] is None or state == ours

    async def put_back(self, ownership: Ownership, after: str) -> bool:
        """Put the entry of a live session back, if it vanished; return whether it had.

        Safe to repeat with the same `after`: the last id of the stream before the first try.
        """
        entry, run, fields = ownership.fence.entry, ownership.run, ownership.fields
        return await self.announce_again(entry, run, fields, after)

    async def announce_again(self, entry: str, run: str, fields: Fields, after: str) -> bool:
        """Do what `put_back` does for a session that is nobody's."""
        flat = {**fields, b"run": run.encode()}
        vanished = await self._run(
            scripts.PUT_BACK,
            [GROUP, entry, run, after, *(part for pair in flat.items() for part in pair)],
        )
        return bool(vanished)

    async def fields_of(self, entry: str) -> Fields | None:
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

    async def settle(self, entry: str) -> None:
        """Remove an entry whose session is over, or never was. Safe to repeat."""
        await self._grouped(
            lambda: scripts.SETTLE(self._redis, [self._keys.sessions], [GROUP, entry])
        )

    async def bury(self, dead: DeadEntry) -> str:
        """Append a refused entry to the dead stream; return its id there."""
        kept: Any = await self._redis.xadd(
            self._keys.dead,
            {name: str(value) for name, value in msgspec.structs.asdict(dead).items()},
            maxlen=DEAD_MAXLEN,
            approximate=True,
        )
        return str(kept.decode())

    async def register(self, worker_id: str, record: WorkerRecord) -> None:
        """Publish this worker's record; warn of another process with the same id."""
        await self._namesakes.look(worker_id, record)
        await self._write("HSET", self._keys.workers, worker_id, msgspec.json.encode(record))

    async def _write(self, command: str, key: str, *args: str | bytes) -> None:
        """Write a little bookkeeping, also to a full Redis."""
        await self._keep_books(scripts.WRITE, key, [command, *args])

    async def _keep_books(
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
        rows: Any = await self._grouped(
            lambda: self._redis.xinfo_consumers(self._keys.sessions, GROUP)
        )
        return {
            row["name"].decode("utf-8", "replace"): not row["pending"]
            and row["idle"] > idle_s * 1000
            for row in rows
        }

    async def retire(self, consumer: str) -> bool:
        """Remove a consumer unless it owns entries; return whether it is gone."""
        return bool(await self._run(scripts.RETIRE, [GROUP, consumer]))

    async def forget(self, worker_id: str, consumer: str) -> None:
        """Remove a worker's record if it is this consumer's."""
        await self._keep_books(scripts.FORGET, self._keys.workers, [worker_id, consumer])
