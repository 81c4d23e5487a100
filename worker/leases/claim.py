"""Claims: from an entry that is ours to a session that runs, or to a refusal told to everybody."""

import logging
import time
from typing import Any

import msgspec
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from schemas.audio import SessionEntry, decode_session, session_id, session_lane
from schemas.turns import SessionEnded, SessionError, SessionStarted
from schemas.validation import EntryError
from worker.bus.client.connection import retry_while_unavailable
from worker.bus.ownership import ClaimResult, Fence, OwnedEntry, Ownership
from worker.bus.permits import Permit
from worker.bus.records import decode_record
from worker.context import WorkerContext
from worker.core.turn_tracker import TurnTracker
from worker.errors import FencedError, TurnbusError
from worker.leases.retries import MAX_CRASHES
from worker.session.checkpoint import Checkpoint
from worker.session.narrator import EventContext, Narrator
from worker.session.publisher import CheckpointPayload
from worker.session.session import Session
from worker.stt.cartesia import PROVIDER
from worker.telemetry.logs import SessionName
from worker.telemetry.traces import SessionTrace

log = logging.getLogger(__name__)

_REJECTED = {
    "ended": "this session has ended; use a new id for each call",
    "duplicate": "this session is live already",
    "unusable": "a key of this session holds something that is not turnbus's",
}
"""Verdicts that refuse an entry, and what to say."""

INTERNAL_ERROR = "a fault of turnbus"


class Claimer:
    """Claims entries of the sessions stream for one worker."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context

    async def claim(self, owned: OwnedEntry) -> Session | None:
        """Claim an entry that the pending list calls ours; return the session to run, if any.

        Raises what the bus says that waiting cannot cure.
        """
        try:
            return await self._claim(owned)
        except (RedisError, TurnbusError):
            raise
        except Exception:
            # It would end this worker, then the next that takes the entry over, and so on.
            log.exception("entry %s: a fault of ours struck as it was claimed", owned.entry_id)
            self._context.stats.internal_errors["claim"] += 1
            await self._reject(
                owned, "internal", f"{INTERNAL_ERROR} (the worker's log tells which)"
            )
            return None

    async def _claim(self, owned: OwnedEntry) -> Session | None:
        try:
            entry = decode_session(owned.fields)
        except EntryError as fault:
            await self._reject(owned, fault.reason, str(fault))
            return None
        fence = Fence(owned.entry_id, owned.delivery_count, self._context.ownership.nonce)
        started = SessionStarted(
            session=entry.session,
            run=owned.entry_id,
            seq=1,
            at=time.time(),
            audio_ms=0,
            provider=PROVIDER,
            request_id="",
            connection=0,
            worker=self._context.worker_id,
            metadata=entry.metadata,
            encoding=entry.encoding,
            sample_rate=entry.sample_rate,
        )
        first = msgspec.json.encode(Checkpoint(config=entry.config))
        spans = SessionTrace(
            entry.session, entry.traceparent, entry.tracestate, self._context.tracing
        )
        try:
            claim = await retry_while_unavailable(
                self._context.health,
                lambda: self._context.ownership.claim(owned, entry, started, first),
            )
        except NoPermissionError as error:
            denied = f"the worker's Redis user may not use the keys of lane {entry.lane}: {error}"
            await self._reject(owned, "unusable", denied)
            return None
        spans.claimed(owned.entry_id, owned.delivery_count, claim.verdict, started.at)
        if claim.verdict == "new":
            self._context.stats.events["session.started"] += 1
        if claim.verdict in ("new", "taken"):
            self._context.lanes.add(entry.lane)
            ownership = Ownership(entry, fence, claim.run, owned.fields)
            log.info("%s: session %s", ownership.name, claim.verdict)
            return await self._resume(ownership, claim)
        if claim.verdict == "stale":
            name = SessionName(entry.session, entry.traceparent)
            return await self._claim_again(owned, name, claim.seq)
        if claim.verdict in _REJECTED:
            self._context.dead_letter(
                owned.entry_id,
                self._context.keys.sessions,
                entry.session,
                claim.verdict,
                _REJECTED[claim.verdict],
                owned.fields,
            )
        if claim.verdict == "over":
            await self._context.permits.release(Permit.of(entry.lane, entry.session, fence))
        await retry_while_unavailable(
            self._context.health, lambda: self._context.ownership.complete(owned.entry_id)
        )
        return None

    async def _resume(self, ownership: Ownership, claim: ClaimResult) -> Session | None:
        """Return the session as its last owner left it, unless it has crashed too often."""
        try:
            snapshot = decode_record(claim.snapshot, Checkpoint)
        except msgspec.DecodeError as error:
            await self._end_unrunnable(
                ownership, claim, Checkpoint(), f"its state cannot be read: {error}"
            )
            return None
        settled = snapshot.ledger.committed_bytes
        if self._context.retries.is_exhausted(ownership.fence.entry_id, settled):
            why = f"the worker failed {MAX_CRASHES} times at the same place"
            await self._end_unrunnable(ownership, claim, snapshot, why)
            return None
        try:
            return Session(self._context, ownership, claim.seq, snapshot)
        except Exception as error:
            log.exception("%s: a fault of ours struck as it was set up", ownership.name)
            self._context.stats.internal_errors["claim"] += 1
            await self._end_unrunnable(ownership, claim, Checkpoint(), type(error).__name__)
            return None

    async def _end_unrunnable(
        self, ownership: Ownership, claim: ClaimResult, snapshot: Checkpoint, why: str
    ) -> None:
        """End a session that we cannot run, in its own name and without running it."""
        entry, fence, context = ownership.entry, ownership.fence, self._context
        log.error("%s: ended, for a fault of ours: %s", ownership.name, why)
        tracker = TurnTracker(snapshot.turns)
        place = EventContext(_audio_ms(entry, snapshot), snapshot.request_id, snapshot.connection)
        written = CheckpointPayload(claim.snapshot, "")
        narrator = Narrator(context, ownership, claim.seq, lambda: place, lambda: written)
        narrator.publish(tracker.force_end("close"))
        narrator.publish_error("internal", f"{INTERNAL_ERROR}: {why}", fatal=True)
        narrator.publish_end("error", tracker.state.turn)
        context.retries.discard(fence.entry_id)
        try:
            await narrator.publisher.wait_committed()
        except FencedError as refusal:
            log.info("%s: let go (%s)", ownership.name, refusal)
            return
        context.dead_letter(
            fence.entry_id, context.keys.sessions, entry.session, "internal", why, {}
        )
        await context.permits.release(Permit.of(entry.lane, entry.session, fence))
        await retry_while_unavailable(
            context.health, lambda: context.ownership.complete(fence.entry_id)
        )

    async def _claim_again(
        self, owned: OwnedEntry, name: SessionName, known: int
    ) -> Session | None:
        """Claim again with a larger count than the one known, if the entry is ours still."""
        raised = await retry_while_unavailable(
            self._context.health,
            lambda: self._context.ownership.raise_delivery_count(owned, known + 1),
        )
        if raised is None:
            log.info("%s: taken by another worker meanwhile", name)
            return None
        return await self.claim(raised)

    async def _reject(self, owned: OwnedEntry, reason: str, why: str) -> None:
        """Tell everybody who can be told that a session entry cannot be used."""
        fields = owned.fields
        session, lane = session_id(fields), session_lane(fields)
        self._context.dead_letter(
            owned.entry_id, self._context.keys.sessions, session or "", reason, why, fields
        )
        if session is not None and lane is not None:
            try:
                await self._publish_rejection(owned, reason, why, session, lane)
            except ResponseError as error:
                name = SessionName(session, None)
                log.warning("%s: its refusal cannot be published: %s", name, error)
        await retry_while_unavailable(
            self._context.health, lambda: self._context.ownership.complete(owned.entry_id)
        )

    async def _publish_rejection(
        self, owned: OwnedEntry, reason: str, why: str, session: str, lane: str
    ) -> None:
        common: dict[str, Any] = {
            "session": session,
            "run": owned.entry_id,
            "at": time.time(),
            "audio_ms": 0,
            "provider": PROVIDER,
            "request_id": "",
            "connection": 0,
        }
        events = (
            SessionError(
                seq=1,
                code=f"session_{reason}",
                message=why,
                status=400,
                fatal=True,
                **common,
            ),
            SessionEnded(seq=2, reason="error", turns=0, **common),
        )
        out = "session" if owned.fields.get(b"out") == b"session" else "lane"
        await retry_while_unavailable(
            self._context.health,
            lambda: self._context.ownership.reject(
                owned.entry_id, session, lane, out, self._context.retention.state_s, events
            ),
        )


def _audio_ms(entry: SessionEntry, snapshot: Checkpoint) -> int:
    """Say how far into a session's audio all is settled."""
    samples = snapshot.ledger.committed_bytes // entry.encoding.width
    return samples * 1000 // entry.sample_rate
