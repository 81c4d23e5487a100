"""Claims: from an entry that is ours to a session that runs, or to a refusal told to everybody."""

import logging
import time
from typing import Any

import msgspec
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from schemas.audio import SessionEntry, decode_session, session_id, session_lane
from schemas.faults import EntryFault
from schemas.turns import SessionEnded, SessionError, SessionStarted
from worker.bus.connection import patiently
from worker.bus.gate import Seat
from worker.bus.intake import Claim, Fence, Owned, Ownership
from worker.bus.records import read_record
from worker.core.turns import TurnTracker
from worker.crashes import MOST
from worker.errors import CommitRefused, TurnbusError
from worker.host import Host
from worker.sessions.narrator import Narrator, Place
from worker.sessions.publisher import Written
from worker.sessions.session import Session
from worker.sessions.standing import Snapshot
from worker.stt.cartesia import PROVIDER
from worker.telemetry.logs import SessionName
from worker.telemetry.spans import SessionTrace

log = logging.getLogger(__name__)

_REFUSED = {
    "ended": "this session has ended; use a new id for each call",
    "duplicate": "this session is live already",
    "unusable": "a key of this session holds something that is not turnbus's",
}
"""Verdicts that refuse an entry, and what to say."""

_OUR_FAULT = "a fault of turnbus"


class Claimer:
    """Claims entries of the sessions stream for one worker."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def take(self, owned: Owned) -> Session | None:
        """Claim an entry that the pending list calls ours; return the session to run, if any.

        Raises what the bus says that waiting cannot cure.
        """
        try:
            return await self._take(owned)
        except (RedisError, TurnbusError):
            raise
        except Exception:
            # It would end this worker, then the next that takes the entry over, and so on.
            log.exception("entry %s: a fault of ours struck as it was claimed", owned.entry)
            self._host.stats.faults["claim"] += 1
            await self._refuse(owned, "internal", f"{_OUR_FAULT} (the worker's log tells which)")
            return None

    async def _take(self, owned: Owned) -> Session | None:
        try:
            entry = decode_session(owned.fields)
        except EntryFault as fault:
            await self._refuse(owned, fault.reason, str(fault))
            return None
        fence = Fence(owned.entry, owned.count, self._host.intake.nonce)
        started = SessionStarted(
            session=entry.session,
            run=owned.entry,
            seq=1,
            at=time.time(),
            audio_ms=0,
            provider=PROVIDER,
            request_id="",
            connection=0,
            worker=self._host.worker_id,
            metadata=entry.metadata,
            encoding=entry.encoding,
            sample_rate=entry.sample_rate,
        )
        first = msgspec.json.encode(Snapshot(config=entry.config))
        spans = SessionTrace(entry.session, entry.traceparent, entry.tracestate, self._host.tracing)
        try:
            claim = await patiently(
                self._host.health, lambda: self._host.intake.claim(owned, entry, started, first)
            )
        except NoPermissionError as error:
            denied = f"the worker's Redis user may not use the keys of lane {entry.lane}: {error}"
            await self._refuse(owned, "unusable", denied)
            return None
        spans.claimed(owned.entry, owned.count, claim.verdict, started.at)
        if claim.verdict == "new":
            self._host.stats.events["session.started"] += 1
        if claim.verdict in ("new", "taken"):
            self._host.lanes.note(entry.lane)
            ownership = Ownership(entry, fence, claim.run, owned.fields)
            log.info("%s: session %s", ownership.name, claim.verdict)
            return await self._resume(ownership, claim)
        if claim.verdict == "stale":
            name = SessionName(entry.session, entry.traceparent)
            return await self._outbid(owned, name, claim.seq)
        if claim.verdict in _REFUSED:
            self._host.bury(
                owned.entry,
                self._host.keys.sessions,
                entry.session,
                claim.verdict,
                _REFUSED[claim.verdict],
                owned.fields,
            )
        if claim.verdict == "over":
            await self._host.gate.leave(Seat.of(entry.lane, entry.session, fence))
        await patiently(self._host.health, lambda: self._host.intake.settle(owned.entry))
        return None

    async def _resume(self, ownership: Ownership, claim: Claim) -> Session | None:
        """Return the session as its last owner left it, unless it has crashed too often."""
        try:
            snapshot = read_record(claim.snapshot, Snapshot)
        except msgspec.DecodeError as error:
            await self._give_up(ownership, claim, Snapshot(), f"its state cannot be read: {error}")
            return None
        settled = snapshot.ledger.committed_bytes
        if self._host.crashes.exhausted(ownership.fence.entry, settled):
            why = f"the worker failed {MOST} times at the same place"
            await self._give_up(ownership, claim, snapshot, why)
            return None
        try:
            return Session(self._host, ownership, claim.seq, snapshot)
        except Exception as error:
            log.exception("%s: a fault of ours struck as it was set up", ownership.name)
            self._host.stats.faults["claim"] += 1
            await self._give_up(ownership, claim, Snapshot(), type(error).__name__)
            return None

    async def _give_up(
        self, ownership: Ownership, claim: Claim, snapshot: Snapshot, why: str
    ) -> None:
        """End a session that we cannot run, in its own name and without running it."""
        entry, fence, host = ownership.session, ownership.fence, self._host
        log.error("%s: ended, for a fault of ours: %s", ownership.name, why)
        tracker = TurnTracker(snapshot.turns)
        place = Place(_audio_ms(entry, snapshot), snapshot.request_id, snapshot.connection)
        written = Written(claim.snapshot, "")
        narrator = Narrator(host, ownership, claim.seq, lambda: place, lambda: written)
        narrator.tell(tracker.conclude("close"))
        narrator.error("internal", f"{_OUR_FAULT}: {why}", fatal=True)
        narrator.end("error", tracker.state.turn)
        host.crashes.forget(fence.entry)
        try:
            await narrator.publisher.drained()
        except CommitRefused as refusal:
            log.info("%s: let go (%s)", ownership.name, refusal)
            return
        host.bury(fence.entry, host.keys.sessions, entry.session, "internal", why, {})
        await host.gate.leave(Seat.of(entry.lane, entry.session, fence))
        await patiently(host.health, lambda: host.intake.settle(fence.entry))

    async def _outbid(self, owned: Owned, name: SessionName, known: int) -> Session | None:
        """Claim again with a larger count than the one known, if the entry is ours still."""
        raised = await patiently(
            self._host.health, lambda: self._host.intake.outbid(owned, known + 1)
        )
        if raised is None:
            log.info("%s: taken by another worker meanwhile", name)
            return None
        return await self.take(raised)

    async def _refuse(self, owned: Owned, reason: str, why: str) -> None:
        """Tell everybody who can be told that a session entry cannot be used."""
        fields = owned.fields
        session, lane = session_id(fields), session_lane(fields)
        self._host.bury(owned.entry, self._host.keys.sessions, session or "", reason, why, fields)
        if session is not None and lane is not None:
            try:
                await self._publish_refusal(owned, reason, why, session, lane)
            except ResponseError as error:
                name = SessionName(session, None)
                log.warning("%s: its refusal cannot be published: %s", name, error)
        await patiently(self._host.health, lambda: self._host.intake.settle(owned.entry))

    async def _publish_refusal(
        self, owned: Owned, reason: str, why: str, session: str, lane: str
    ) -> None:
        common: dict[str, Any] = {
            "session": session,
            "run": owned.entry,
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
        await patiently(
            self._host.health,
            lambda: self._host.intake.refuse(
                owned.entry, session, lane, out, self._host.retention.state_s, events
            ),
        )


def _audio_ms(entry: SessionEntry, snapshot: Snapshot) -> int:
    """Say how far into a session's audio all is settled."""
    samples = snapshot.ledger.committed_bytes // entry.encoding.width
    return samples * 1000 // entry.sample_rate
