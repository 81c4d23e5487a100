"""Claims: from an entry that is ours to a session that runs, or to a refusal told to everybody."""

import logging
import time
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from schemas.audio import decode_session, session_id, session_lane
from schemas.faults import EntryFault
from schemas.keys import Keys
from schemas.turns import SessionEnded, SessionError, SessionStarted
from worker.bus.connection import patiently
from worker.bus.intake import Fence, Owned, Ownership
from worker.core import ids
from worker.host import Host
from worker.session import Session, Snapshot
from worker.stt.cartesia import PROVIDER

log = logging.getLogger(__name__)

_REFUSED = {
    "ended": "this session has ended; use a new id for each call",
    "duplicate": "this session is live already",
    "unusable": "a key of this session holds something that is not turnbus's",
}
"""Verdicts that refuse an entry, and what to say."""


class Claimer:
    """Claims entries of the sessions stream for one worker."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def take(self, owned: Owned) -> Session | None:
        """Claim an entry that the pending list calls ours; return the session to run, if any."""
        try:
            entry = decode_session(owned.fields)
        except EntryFault as fault:
            await self._refuse(owned, fault)
            return None
        run = _run_of(owned)
        fence = Fence(owned.entry, owned.count, self._host.intake.nonce)
        started = SessionStarted(
            session=entry.session,
            run=run,
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
        claim = await patiently(
            self._host.health, lambda: self._host.intake.claim(owned, entry, started, first)
        )
        if claim.verdict in ("new", "taken"):
            log.info("%s: session %s", entry.session, claim.verdict)
            snapshot = msgspec.json.decode(claim.snapshot, type=Snapshot)
            ownership = Ownership(entry, fence, claim.run, owned.fields)
            return Session(self._host, ownership, claim.seq, snapshot)
        if claim.verdict == "stale":
            return await self._outbid(owned, entry.session, claim.seq)
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
            await self._host.gate.leave(Keys.gate_member(entry.lane, entry.session))
        await patiently(self._host.health, lambda: self._host.intake.settle(owned.entry))
        return None

    async def _outbid(self, owned: Owned, session: str, known: int) -> Session | None:
        """Claim again with a larger count than the one known, if the entry is ours still."""
        raised = await patiently(
            self._host.health, lambda: self._host.intake.outbid(owned, known + 1)
        )
        if raised is None:
            log.info("%s: taken by another worker meanwhile", session)
            return None
        return await self.take(raised)

    async def _refuse(self, owned: Owned, fault: EntryFault) -> None:
        """Tell everybody who can be told that a session entry cannot be used."""
        fields = owned.fields
        session, lane = session_id(fields), session_lane(fields)
        self._host.bury(
            owned.entry, self._host.keys.sessions, session or "", fault.reason, str(fault), fields
        )
        if session is not None and lane is not None:
            try:
                await self._publish_refusal(owned, fault, session, lane)
            except ResponseError as error:
                log.warning("%s: its refusal cannot be published: %s", session, error)
        await patiently(self._host.health, lambda: self._host.intake.settle(owned.entry))

    async def _publish_refusal(
        self, owned: Owned, fault: EntryFault, session: str, lane: str
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
                code=f"session_{fault.reason}",
                message=str(fault),
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


def _run_of(owned: Owned) -> str:
    """Return the entry that began the session: this one, or the one it was put back for."""
    run = owned.fields.get(b"run", b"").decode("ascii", "replace")
    try:
        ids.order(run)
    except ValueError:
        return owned.entry
    return run
