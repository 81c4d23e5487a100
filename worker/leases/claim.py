"""Claims: turn a session entry that this worker owns into a session, or reject the entry."""

import logging
import time
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from schemas.audio import (
    SessionEntry,
    decode_session,
    session_group,
    session_id,
    session_lane,
    session_provider,
)
from schemas.turns import Event, SessionEnded, SessionError, SessionStarted, decode_record
from schemas.validation import EntryError
from worker.bus.ownership import ClaimResult, Fence, OwnedEntry, OwnedSession
from worker.bus.permits import Permit
from worker.context import WorkerContext
from worker.core import stream_ids
from worker.core.turn_tracker import TurnTracker
from worker.errors import FencedError, TurnbusError
from worker.leases.declined import DECLINED_S
from worker.leases.retries import MAX_CRASHES
from worker.session.checkpoint import Checkpoint, CheckpointPayload, EventContext
from worker.session.publisher import EventPublisher
from worker.session.session import Session
from worker.telemetry.logs import SessionName
from worker.telemetry.traces import SessionTrace

log = logging.getLogger(__name__)

_REJECTED = {
    "ended": "this session has ended; use a new id for each call",
    "duplicate": "this session is already live",
    "unusable": "a key of this session exists with an unexpected Redis type",
}
"""Error message for each verdict that rejects an entry."""

INTERNAL_ERROR = "internal error"


class _Fatal(NamedTuple):
    """Why a session ends without running, as the consumers receive it."""

    code: str
    message: str


def _internal(why: str) -> _Fatal:
    return _Fatal("internal", f"{INTERNAL_ERROR}: {why}")


class Claimer:
    """Claims entries of the sessions stream for one worker."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context

    async def open_session(self, owned: OwnedEntry) -> Session | None:
        """Claim an entry that is pending for this worker; return the session to run, if any.

        Raises the Redis errors that a retry cannot resolve.
        """
        try:
            return await self._claim(owned)
        except (RedisError, TurnbusError):
            raise
        except Exception:
            # Otherwise it would end this worker, and then each worker that takes the entry over.
            log.exception("entry %s: internal error while claiming, rejecting", owned.entry_id)
            self._context.stats.internal_errors["claim"] += 1
            await self._reject(owned, "internal", f"{INTERNAL_ERROR} (see the worker's log)")
            return None

    async def _claim(self, owned: OwnedEntry) -> Session | None:
        try:
            entry = decode_session(owned.fields)
        except EntryError as error:
            await self._reject(owned, error.reason, str(error))
            return None
        provider, unserved = session_provider(owned.fields), ""
        try:
            provider = self._context.choices_of(entry)[0].name
        except EntryError as error:
            health, leases = self._context.health, self._context.leases
            if not await health.retry(lambda: leases.is_live(owned, entry)):
                await self._reject(owned, error.reason, str(error))
                return None
            unserved = str(error)
            if await self._decline(owned, entry, unserved):
                return None
        fence = Fence(owned.entry_id, owned.delivery_count, self._context.leases.claim_nonce())
        started = SessionStarted(
            seq=1,
            worker=self._context.settings.worker_id,
            metadata=entry.metadata,
            encoding=entry.encoding,
            sample_rate=entry.sample_rate,
            **_common(entry.session, owned.entry_id, entry.group, provider),
        )
        first = msgspec.json.encode(Checkpoint(config=entry.config))
        spans = SessionTrace(
            entry.session, entry.traceparent, entry.tracestate, self._context.tracing
        )
        try:
            claim = await self._context.health.retry(
                lambda: self._context.leases.claim(owned, entry, started, first, fence.nonce),
            )
        except NoPermissionError as error:
            denied = f"the worker's Redis user may not use the keys of lane {entry.lane}: {error}"
            await self._reject(owned, "unusable", denied)
            return None
        spans.claimed(owned.entry_id, owned.delivery_count, claim.verdict, started.at)
        if claim.verdict == "new":
            self._context.stats.events["session.started"] += 1
        if claim.verdict in ("new", "taken"):
            self._context.registry.add_lane(entry.lane)
            ownership = OwnedSession(entry, fence, claim.run, owned.fields)
            return await self._resume(ownership, claim, unserved)
        if claim.verdict == "stale":
            known = claim.seq
            raised = await self._context.health.retry(
                lambda: self._context.leases.raise_delivery_count(owned, known + 1)
            )
            if raised is not None:
                return await self.open_session(raised)
            name = SessionName(entry.session, entry.traceparent)
            log.info("%s: claim abandoned (another worker took it)", name)
            return None
        if claim.verdict in _REJECTED:
            await self._context.dead_letters.write(
                owned.entry_id,
                entry.session,
                claim.verdict,
                _REJECTED[claim.verdict],
                owned.fields,
            )
        if claim.verdict == "over":
            await self._context.permits.release(Permit.of(entry.lane, entry.session, fence))
            await self._complete_ended(owned.entry_id, entry, claim.run)
        else:
            await self._context.health.retry(lambda: self._context.leases.complete(owned.entry_id))
        return None

    async def _complete_ended(self, entry_id: str, entry: SessionEntry, run: str) -> None:
        """Remove an ended session's entry. If Redis lost the end, a heartbeat reclaims it."""
        complete = partial(self._context.leases.complete_ended, entry_id, entry, run)
        await self._context.health.retry(complete)

    async def _resume(
        self, ownership: OwnedSession, claim: ClaimResult, unserved: str
    ) -> Session | None:
        """Return the session at its last checkpoint, unless it has crashed too often.

        `unserved` is why this worker cannot serve it; then the session ends.
        """
        try:
            checkpoint = decode_record(claim.checkpoint, Checkpoint)
        except msgspec.DecodeError as error:
            why = f"its checkpoint cannot be decoded: {error}"
            await self._end_unrunnable(ownership, claim, Checkpoint(), _internal(why))
            return None
        if unserved:
            self._context.declined.discard(ownership.fence.entry_id)
            idle_s = self._context.settings.session_idle_s
            fatal = _Fatal(
                "stt_unserved",
                f"no worker with a provider of this session took it, and nothing was appended for "
                f"{idle_s:g} s; {unserved}",
            )
            await self._end_unrunnable(ownership, claim, checkpoint, fatal)
            return None
        committed = checkpoint.ledger.committed_bytes
        if claim.verdict == "new":
            log.info("%s: session claimed (new)", ownership.name)
        else:
            entry_id = stream_ids.predecessor(checkpoint.ledger.committed.entry_id)
            log.info("%s: session claimed (continues after entry %s)", ownership.name, entry_id)
        self._context.retries.note_position(ownership.fence.entry_id, committed)
        if self._context.retries.is_exhausted(ownership.fence.entry_id):
            why = f"the worker failed {MAX_CRASHES} times at the same position"
            await self._end_unrunnable(ownership, claim, checkpoint, _internal(why))
            return None
        try:
            return Session(self._context, ownership, claim.seq, checkpoint)
        except Exception as error:
            log.exception("%s: internal error during setup", ownership.name)
            self._context.stats.internal_errors["claim"] += 1
            # The checkpoint may be what the setup fails on, so its turn is not ended.
            fatal = _internal(type(error).__name__)
            await self._end_unrunnable(ownership, claim, Checkpoint(), fatal)
            return None

    async def _end_unrunnable(
        self,
        ownership: OwnedSession,
        claim: ClaimResult,
        checkpoint: Checkpoint,
        fatal: _Fatal,
    ) -> None:
        """End a session that cannot run: publish its error and end events and release it."""
        entry, fence, context = ownership.entry, ownership.fence, self._context
        log.error("%s: ending session (%s)", ownership.name, fatal.message)
        tracker = TurnTracker(checkpoint.turns)
        place = EventContext(
            _audio_ms(entry, checkpoint),
            checkpoint.provider or session_provider(ownership.fields),
            checkpoint.request_id,
            checkpoint.connection,
        )
        written = CheckpointPayload(claim.checkpoint, "")
        publisher = EventPublisher(context, ownership, claim.seq, lambda: place, lambda: written)
        publisher.publish(tracker.force_end("close"))
        publisher.publish_error(*fatal, fatal=True)
        publisher.publish_end("error", tracker.state.turn, checkpoint.usage)
        context.retries.discard(fence.entry_id)
        try:
            await publisher.wait_committed()
        except FencedError as error:
            log.info("%s: lease lost, stopping (%s)", ownership.name, error)
            return
        context.dead_letters.put(fence.entry_id, context.keys.sessions, entry.session, *fatal, {})
        await context.permits.release(Permit.of(entry.lane, entry.session, fence))
        await self._complete_ended(fence.entry_id, entry, ownership.run)

    async def _decline(self, owned: OwnedEntry, entry: SessionEntry, why: str) -> bool:
        """Release a live session, which this worker cannot serve, to the other workers.

        Returns False instead if its producer has appended nothing for the idle timeout: then no
        worker can serve the session, or has room for it, and it has to end.
        """
        context, idle_s = self._context, self._context.settings.session_idle_s
        last_audio = await context.health.retry(lambda: context.leases.last_audio(entry))
        now = time.monotonic()
        silent_since = max(
            context.declined.silent_since(owned.entry_id, last_audio, now),
            context.health.since,  # the producer could not append during an outage
            context.reader.lane(entry.lane).up_since,
        )
        if now - silent_since >= idle_s:
            return False
        name = SessionName(entry.session, entry.traceparent)
        log.warning("%s: left to workers with other providers (%s)", name, why)
        context.declined.add(owned.entry_id, last_audio, now, min(DECLINED_S, idle_s))
        pairs = [(owned.entry_id, owned.delivery_count)]
        await context.health.retry(lambda: context.leases.release(pairs))
        return True

    async def _reject(self, owned: OwnedEntry, reason: str, why: str) -> None:
        """Reject a session entry: write a dead letter and, if possible, publish error events.

        The entry is removed last: if this worker stops before, the next one rejects it again.
        """
        fields = owned.fields
        session, lane = session_id(fields), session_lane(fields)
        await self._context.dead_letters.write(owned.entry_id, session or "", reason, why, fields)
        if session is not None and lane is not None:
            named = session_provider(fields)
            common = _common(session, owned.entry_id, session_group(fields), named)
            events = _rejection(common, reason, why)
            out = "session" if fields.get(b"out") == b"session" else "lane"
            retention_s = self._context.settings.retention_s
            try:
                await self._context.health.retry(
                    lambda: self._context.leases.reject(
                        owned.entry_id, session, lane, out, retention_s, events
                    )
                )
            except ResponseError as error:
                subject = SessionName(session, None)
                log.warning("%s: cannot publish the rejection (%s)", subject, error)
        await self._context.health.retry(lambda: self._context.leases.complete(owned.entry_id))


def _common(session: str, run: str, group: str | None, provider: str) -> dict[str, Any]:
    """Return the fields of an event that precedes all audio."""
    return {
        "session": session,
        "run": run,
        "at": time.time(),
        "audio_ms": 0,
        "provider": provider,
        "request_id": "",
        "connection": 0,
        "group": group or UNSET,
    }


def _rejection(common: dict[str, Any], reason: str, why: str) -> tuple[Event, Event]:
    """Return the events of a session that ends before it begins."""
    code = f"session_{reason}"
    return (
        SessionError(seq=1, code=code, message=why, status=400, fatal=True, **common),
        SessionEnded(seq=2, reason="error", turns=0, **common),
    )


def _audio_ms(entry: SessionEntry, checkpoint: Checkpoint) -> int:
    """Return the position in the session's audio up to which all is committed."""
    samples = checkpoint.ledger.committed_bytes // entry.encoding.width
    return samples * 1000 // entry.sample_rate
