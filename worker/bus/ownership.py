"""Session ownership: the pending list of `stt:sessions` records which worker owns which session."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain, count
from typing import Any, ParamSpec, TypedDict, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas.audio import Fields, SessionEntry, encode_session
from schemas.keys import GROUP, RELEASED, Keys
from schemas.turns import Event, SessionStarted, encode_event, event_type
from worker.bus import scripts
from worker.bus.fitness import explain_taken_keys
from worker.bus.scripts import Script
from worker.core import stream_ids
from worker.telemetry.logs import SessionName

P = ParamSpec("P")
R = TypeVar("R")
MAX_TAKEOVERS = 50


class OwnedEntry(msgspec.Struct, frozen=True):
    """An entry of the sessions stream that this worker owns."""

    entry_id: str
    delivery_count: int
    """Number of deliveries; a later claim has a larger one."""
    fields: Fields
    owner: str = ""
    """Consumer from which the entry was taken over."""


class Takeover(msgspec.Struct, frozen=True):
    """The result of a takeover of released and abandoned sessions."""

    owned: tuple[OwnedEntry, ...]
    """Entries that this worker owns now."""
    lost: bool
    """Whether entries left the stream, so that their sessions must be recovered."""


class Fence(msgspec.Struct, frozen=True):
    """Proof of ownership in every commit."""

    entry_id: str
    delivery_count: int
    nonce: str
    """Random value of this process, and a number of the claim. After Redis lost its last writes in
    a failover, the process may claim an entry twice with the same delivery count."""


class OwnedSession(msgspec.Struct, frozen=True):
    """A session that this worker owns."""

    entry: SessionEntry
    fence: Fence
    run: str
    """Id of the entry that began the session."""
    fields: Fields
    """Raw fields of the session entry."""

    @property
    def name(self) -> SessionName:
        """Name of the session in log lines."""
        return SessionName(self.entry.session, self.entry.traceparent)


class ClaimResult(msgspec.Struct, frozen=True):
    """The answer to a claim; see `claim.lua` for the verdicts."""

    verdict: str
    seq: int
    """Seq of the last event; if the verdict is `stale`, the known delivery count."""
    checkpoint: bytes
    """The checkpoint as JSON."""
    run: str


class HeartbeatReport(msgspec.Struct, frozen=True):
    """How the pending list differs from the sessions that this worker runs."""

    taken_by_others: frozenset[str]
    """Ids of entries that another consumer owns now."""
    missing: frozenset[str]
    """Ids of entries that no consumer owns, or that left the stream."""
    unclaimed: tuple[tuple[str, int], ...]
    """Ids and delivery counts of entries that this consumer owns but does not run."""


class _Group(TypedDict):
    """The values with which most scripts name the pending list."""

    sessions_key: str
    lost_key: str
    group: str


class SessionLeases:
    """Reads, claims, renews, releases and completes session entries for one consumer."""

    def __init__(self, redis: Redis, keys: Keys, consumer: str, nonce: str) -> None:
        self._redis = redis
        self._keys = keys
        self._kinds = {keys.sessions: "stream", keys.lost: "zset"}
        self._group: _Group = {
            "sessions_key": keys.sessions,
            "lost_key": keys.lost,
            "group": GROUP,
        }
        self.consumer = consumer
        self.nonce = nonce
        self._claims = count(1)

    def claim_nonce(self) -> str:
        """Return the nonce of the next claim's fence."""
        return f"{self.nonce}-{next(self._claims)}"

    async def ensure_group(self) -> None:
        """Create the consumer group, starting at the first entry, unless it exists."""
        try:
            await self._redis.xgroup_create(self._keys.sessions, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _run(self, script: Script[P, R], *_: P.args, **values: P.kwargs) -> R:
        """Run a script on the group."""
        call = script.call(*_, **values)
        return await self._with_group(lambda: script.run(self._redis, call))

    async def _with_group(self, call: Callable[[], Awaitable[R]]) -> R:
        """Run `call`, and create the group and run it again if the group was destroyed.

        Raises `KeyTaken` if another program uses the key of the sessions stream.
        """
        async with explain_taken_keys(self._redis, self._kinds):
            try:
                reply = await call()
            except ResponseError as error:
                if "NOGROUP" not in str(error) and "no such key" not in str(error):
                    raise
                await self.ensure_group()
                reply = await call()
        return reply

    async def read_new(self, at_most: int, block_ms: int) -> list[OwnedEntry]:
        """Read up to `at_most` undelivered entries, waiting up to `block_ms` for one."""
        streams: dict[Any, Any] = {self._keys.sessions: ">"}
        reply: Any = await self._with_group(
            lambda: self._redis.xreadgroup(
                GROUP, self.consumer, streams, count=at_most, block=block_ms
            )
        )
        rows = reply[0][1] if reply else []
        return [OwnedEntry(entry_id.decode(), 1, fields) for entry_id, fields in rows]

    async def take_over(
        self,
        at_most: int,
        lease_ms: int,
        dead: Iterable[str] = (),
        declined: Iterable[str] = (),
    ) -> Takeover:
        """Take over released entries, and those of owners that are dead or idle for a lease.

        Entries with the ids `declined` are left to other consumers.
        """
        rows, lost = await self._run(
            scripts.take_over,
            **self._group,
            consumer=self.consumer,
            released_consumer=RELEASED,
            lease_ms=lease_ms,
            max_entries=min(at_most, MAX_TAKEOVERS),
            declined=" ".join(["", *declined, ""]),
            dead=dead,
        )
        owned = tuple(
            OwnedEntry(
                entry_id.decode(),
                count,
                dict(zip(flat[::2], flat[1::2], strict=True)),
                owner.decode("utf-8", "replace"),
            )
            for entry_id, count, flat, owner in rows
        )
        return Takeover(owned, bool(lost))

    async def claim(
        self,
        owned: OwnedEntry,
        session: SessionEntry,
        started: SessionStarted,
        first_checkpoint: bytes,
        nonce: str,
    ) -> ClaimResult:
        """Write this owner's fence into the session's state, or begin it. Safe to repeat.

        `nonce` is the fence's.
        """
        verdict, seq, kept, run = await scripts.claim(
            self._redis,
            **self._keys.of_session(session.lane, session.session),
            entry_id=owned.entry_id,
            delivery_count=owned.delivery_count,
            nonce=nonce,
            run=owned.fields.get(b"run", owned.entry_id),
            entry_fields=msgspec.json.encode(encode_session(session)),
            session=session.session,
            started_event=encode_event(started),
            traceparent=session.traceparent or "",
            out=session.out,
            first_snapshot=first_checkpoint,
        )
        return ClaimResult(verdict.decode(), seq, kept, run.decode())

    async def raise_delivery_count(self, owned: OwnedEntry, count: int) -> OwnedEntry | None:
        """Raise an entry's delivery count; None if another consumer owns it. Safe to repeat."""
        raised = await self._run(
            scripts.raise_delivery_count,
            **self._group,
            consumer=self.consumer,
            entry_id=owned.entry_id,
            delivery_count=owned.delivery_count,
            new_count=count,
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
        """Publish that a session ended before it began, unless its state exists. Safe to repeat."""
        rejected = await scripts.reject(
            self._redis,
            **self._keys.of_session(lane, session),
            run=run,
            session=session,
            out=out,
            retention_s=retention_s,
            events=chain.from_iterable((event_type(each), encode_event(each)) for each in events),
        )
        return bool(rejected)

    async def last_entry(self) -> str:
        """Return the last id of the sessions stream, even if its entry was deleted."""
        async with explain_taken_keys(self._redis, self._kinds):
            return await self._last_id(self._keys.sessions)

    async def last_audio(self, session: SessionEntry) -> str:
        """Return the last id of a session's audio stream, even if its entry was deleted.

        It is the first possible id if the key is missing, or holds another type than a stream.
        """
        try:
            return await self._last_id(self._keys.audio(session.lane, session.session))
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            return stream_ids.START

    async def _last_id(self, key: str) -> str:
        """Return the last id of a stream; the first possible one if it is missing."""
        try:
            about: Any = await self._redis.xinfo_stream(key)
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
            return stream_ids.START
        last: str = about["last-generated-id"].decode()
        return last

    async def is_live(self, owned: OwnedEntry, session: SessionEntry) -> bool:
        """Return whether this entry has begun a session that has not ended."""
        run = owned.fields.get(b"run", owned.entry_id.encode())
        return await self._is_live(session, run)

    async def _is_live(self, session: SessionEntry, run: bytes) -> bool:
        """Return whether the session of this run has begun and not ended."""
        try:
            state: Any = await self._redis.hmget(
                self._keys.state(session.lane, session.session), "status", "run"
            )
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            return False
        return bool(state == [b"live", run])

    async def has_other_owner(self, ownership: OwnedSession) -> bool:
        """Return whether a session's state names another owner; false if the state is lost."""
        session, fence = ownership.entry, ownership.fence
        key = self._keys.state(session.lane, session.session)
        state: Any = await self._redis.hmget(key, "entry", "count", "nonce")
        own = [str(part).encode() for part in (fence.entry_id, fence.delivery_count, fence.nonce)]
        return state[0] is not None and state != own

    async def restore_entry(self, entry_id: str, run: str, fields: Fields, after: str) -> bool:
        """Restore the entry of a live session if it is missing; return whether it was.

        Safe to repeat with the same `after`: the last id of the stream before the first attempt.
        """
        flat = {**fields, b"run": run.encode()}
        vanished = await self._run(
            scripts.restore_entry,
            **self._group,
            entry_id=entry_id,
            run=run,
            after=after,
            fields=chain.from_iterable(flat.items()),
        )
        return bool(vanished)

    async def read_fields(self, entry_id: str) -> Fields | None:
        """Return the fields of an entry of the sessions stream; None if it is gone."""
        rows: Any = await self._redis.xrange(self._keys.sessions, entry_id, entry_id)
        return rows[0][1] if rows else None

    async def heartbeat(self, running: list[tuple[str, int]]) -> HeartbeatReport:
        """Renew the lease of each running (entry id, count); report which are not owned."""
        taken, missing, unclaimed = await self._run(
            scripts.heartbeat,
            **self._group,
            consumer=self.consumer,
            running=chain.from_iterable(running),
        )
        return HeartbeatReport(
            frozenset(entry_id.decode() for entry_id in taken),
            frozenset(entry_id.decode() for entry_id in missing),
            tuple(
                (entry_id.decode(), int(count))
                for entry_id, count in zip(unclaimed[::2], unclaimed[1::2], strict=True)
            ),
        )

    async def release(self, owned: list[tuple[str, int]]) -> int:
        """Release entries, so that any worker can claim them at once; return how many.

        Entries of other owners, and entries that left the stream, are not released.
        """
        return await self._run(
            scripts.release,
            **self._group,
            consumer=self.consumer,
            released_consumer=RELEASED,
            owned=chain.from_iterable(owned),
        )

    async def complete_ended(self, entry_id: str, session: SessionEntry, run: str) -> bool:
        """Remove the entry of a session that ended; return False if Redis has lost its end.

        After a failover, a session without an entry would not be found. Safe to repeat.
        """
        if await self._is_live(session, run.encode()):
            return False
        await self.complete(entry_id)
        return True

    async def complete(self, entry_id: str) -> None:
        """Remove the entry of a session that ended or was rejected. Safe to repeat."""
        await self._run(
            scripts.complete, sessions_key=self._keys.sessions, group=GROUP, entry_id=entry_id
        )

    async def consumers(self, idle_s: float) -> dict[str, bool]:
        """Return every consumer, and whether it owns nothing and is idle for `idle_s`."""
        rows: Any = await self._with_group(
            lambda: self._redis.xinfo_consumers(self._keys.sessions, GROUP)
        )
        return {
            row["name"].decode("utf-8", "replace"): not row["pending"]
            and row["idle"] > idle_s * 1000
            for row in rows
        }

    async def delete_consumer(self, consumer: str) -> bool:
        """Delete a consumer unless it owns entries; return whether it is gone."""
        deleted = await self._run(
            scripts.delete_consumer,
            sessions_key=self._keys.sessions,
            group=GROUP,
            consumer=consumer,
        )
        return bool(deleted)
