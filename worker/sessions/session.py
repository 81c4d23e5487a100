"""One session's life: from its claim to its tombstone, over any number of sockets.

The reader feeds it audio, the ticker tells it the time, both by plain calls; its own task connects,
listens, and decides what is committed.

    PARKED ----audio----> CONNECTING ----connected----> LIVE
      ^ ^                     ^                          | |
      | +---- lost, nothing --+------- lost, audio ------+ | end, or long without audio
      |       to replay                to replay           v
      +------------------- all published --------------- FLUSHING ---> OVER
"""

import logging
import time
from enum import Enum
from typing import NamedTuple

import anyio
from redis.exceptions import ResponseError

from schemas.turns import EndReason as SessionEndReason
from worker.bus.commits import CRASHED
from worker.bus.intake import Ownership
from worker.bus.reader import Entries
from worker.core.faults import is_idle_close
from worker.errors import SttError, SttPermanent, SttTransient
from worker.host import Host
from worker.sessions.conversation import Conversation
from worker.sessions.parts import Parts
from worker.sessions.standing import Snapshot
from worker.telemetry.spans import SessionTrace

log = logging.getLogger(__name__)

OUTAGE_TOLD_AFTER_S = 3.0
"""How long a session may be without a socket before consumers are told."""


class Phase(Enum):
    """Where a session stands with its socket."""

    PARKED = "parked"
    CONNECTING = "connecting"
    LIVE = "live"
    FLUSHING = "flushing"
    OVER = "over"


class Epitaph(NamedTuple):
    """Why a session failed, for the dead stream."""

    code: str
    message: str


class Session:
    """Runs one owned session."""

    def __init__(self, host: Host, ownership: Ownership, seq: int, snapshot: Snapshot) -> None:
        entry = ownership.session
        self.ownership = ownership
        self.name = ownership.name
        self.lane = entry.lane
        self.audio_key = host.keys.audio(entry.lane, entry.session)
        self.epoch = 0
        self.announced_again = False
        """Its entry was put back, for Redis had lost it."""
        self._host = host
        self._entry = entry
        self._parts = parts = Parts.assemble(host, ownership, self.audio_key, seq, snapshot)
        self.rhythm = parts.rhythm
        """Of its audio stream; the reader's."""
        self._ledger = parts.ledger
        self._lateness = parts.lateness
        self._uplink = parts.uplink
        self._tracker = parts.tracker
        self._narrator = parts.narrator
        self._hearing = parts.hearing
        self._inbox = parts.inbox
        self._dialer = parts.dialer
        if self._tracker.open:
            self.trace.turn_started(snapshot.turns.turn, time.time(), taken_over=True)
        host.usual_lag.inherit(snapshot.lag_s)
        # As the socket before this one was opened.
        self._reached = self._ledger.committed_bytes
        self._reached_sent = self._lateness.sent_until
        self._epitaph: Epitaph | None = None
        self._wake = anyio.Event()
        self._conversation: Conversation | None = None
        self._alone = Phase.PARKED  # the phase where there is no conversation
        self._alone_since = time.monotonic()
        self._outage_since: float | None = None  # of the socket, until one works
        self._outage_told = False
        self._unreadable = ""

    @property
    def phase(self) -> Phase:
        """Where it stands with its socket."""
        if self._conversation is None or self._alone is Phase.OVER:
            return self._alone
        return Phase.FLUSHING if self._conversation.flushing else Phase.LIVE

    # -- what the reader asks and tells

    @property
    def cursor(self) -> str:
        """Entry id after which to read."""
        return self._inbox.cursor

    @property
    def wants_audio(self) -> bool:
        """Whether to read audio for this session now."""
        if self._alone is Phase.OVER or self._inbox.read_to_end or self._unreadable:
            return False
        if self._conversation is None:
            return not self._uplink.holds_audio
        stops = self._conversation.flushing or self._inbox.cut_short
        return self._uplink.has_room and not stops

    @property
    def chunk_s(self) -> float:
        """How much sound the chunk held that was read last, in seconds."""
        return self._uplink.chunk_ms / 1000

    @property
    def trace(self) -> SessionTrace:
        """Its spans."""
        return self._narrator.trace

    @property
    def lag_s(self) -> float:
        """Age of the oldest audio that was read and waits to be sent, in seconds; 0 if none."""
        if not self._uplink.holds_audio:
            return 0.0
        # What a live session holds is newer than that by less than the uplink has room for.
        oldest = self._ledger.oldest if self._conversation is None else self.cursor
        return self._parts.ages.age_s(oldest or self.cursor)

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of audio that were read and are not covered by published events."""
        return self._ledger.taken - self._ledger.committed_bytes

    @property
    def may_move(self) -> bool:
        """Whether giving the session away now costs nobody anything.

        One that waits for a socket gets it from the next worker no later, inside a turn or not.
        """
        between_turns = self.phase is Phase.LIVE and not self._tracker.open
        return between_turns or self.phase in (Phase.PARKED, Phase.CONNECTING)

    @property
    def stranded(self) -> bool:
        """Whether it waits for a socket that this machine cannot open."""
        return self.phase is Phase.CONNECTING and self._dialer.stranded

    @property
    def refused(self) -> str | None:
        """Why our commits are refused: another worker owns the session. None while they are not."""
        return self._narrator.publisher.refused

    def feed(self, entries: Entries, now: float) -> None:
        """Take entries that follow the cursor, read just now."""
        conversation = self._conversation
        if self._alone is Phase.OVER or self.refused is not None:
            return
        if conversation is None:
            self._inbox.take(entries, now, live=False)
            self._wake.set()
        elif not (conversation.flushing or self._inbox.cut_short):
            self._inbox.take(entries, now, live=True)
            conversation.drain(now)
        # else it is read again, if it is wanted, once the flush is over, or by another owner

    def unreadable(self, error: ResponseError) -> None:
        """Learn that the audio key holds something that is no stream."""
        self._unreadable = str(error)
        self._wake.set()

    def tick(self, now: float) -> None:
        """Look at every deadline; called about ten times a second."""
        if self._alone is not Phase.OVER:
            self._parts.reports.tick(now)
        if self._conversation is not None:
            self._conversation.tick(now)
            if self._conversation.works(now):
                self._end_outage()
        elif self._outage_since is not None and self._alone is Phase.CONNECTING:
            late = now - self._outage_since > OUTAGE_TOLD_AFTER_S
            if late and not self._outage_told:
                self._outage_told = True
                self._publish_outage()
        elif self._alone is Phase.PARKED and self._is_idle:
            self._wake.set()

    # -- its own task

    async def run(self) -> None:
        """Run until the session ended. Cancel to let go of it.

        Raises `CommitRefused` if another worker owns the session.
        """
        self._host.reader.add(self)
        try:
            while self._alone is not Phase.OVER:
                await self._step()
            await self._narrator.publisher.drained()
            self._parts.defects.summarize()
            self._bury()
            await self._dialer.hang_up()
        finally:
            self._alone = Phase.OVER
            self._host.reader.remove(self)

    def prove(self) -> None:
        """Commit, events or not, so that it shows whether the session is still ours."""
        self._narrator.publisher.touch()

    def crashed(self) -> None:
        """Commit nothing more: a fault of ours struck, and what is held may be wrong."""
        self._narrator.publisher.stop(CRASHED)

    async def settle(self) -> None:
        """Wait until everything published so far is committed; raises `CommitRefused`."""
        publisher = self._narrator.publisher
        if self._lateness.sent_until > self._ledger.committed_bytes and publisher.refused is None:
            publisher.touch()  # how far it was sent
        await publisher.drained()

    async def _step(self) -> None:
        """Wait for work; do one socket's worth of it."""
        self._enter(Phase.PARKED)
        while not self._has_work:
            await self._wake.wait()
            self._wake = anyio.Event()
            if self._is_idle and not self._has_work:
                self._hearing.break_off()
                self._finish("idle")
                return
        if self._unreadable:
            self._fail("audio_unreadable", f"audio key: {self._unreadable}", status=0)
            return
        if self._inbox.read_to_end and not self._uplink.holds_audio and not self._tracker.open:
            self._finish("end")
            return
        conversation = await self._connect()
        if conversation is None:
            return
        lost: SttError | None = None
        try:
            async with conversation.stream:
                await conversation.run()
                await self._flushed()
        except SttError as error:
            lost = error
            if isinstance(error, SttPermanent) and self._dialer.withdraw(error):
                lost = SttTransient(str(error), status=error.status, request_id=error.request_id)
            self.trace.socket_lost(lost, self._uplink.ms_of(self._uplink.unsettled) / 1000)
            self._parts.upkeep.lost(lost, time.monotonic(), flushing=conversation.flushing)
        finally:
            self._conversation = None
            self._set_back()
        self.trace.flush_ended(lost)
        if lost is not None:
            await self._lose(lost)

    @property
    def _has_work(self) -> bool:
        return bool(self._unreadable) or self._uplink.holds_audio or self._inbox.read_to_end

    @property
    def _is_idle(self) -> bool:
        """Whether the producer is thought to be gone; to be asked where there is no socket."""
        if self.rhythm.asked_at < self._alone_since:
            return False  # nobody has looked yet whether there is more
        return self._parts.upkeep.silent_s(self._inbox.news_at) > self._host.pace.idle_s

    def _enter(self, phase: Phase) -> None:
        """Enter a phase without a conversation."""
        self._alone = phase
        self._alone_since = time.monotonic()
        self._look()

    def _look(self) -> None:
        """Have the reader look at once whether audio is wanted."""
        self.rhythm.hurry()
        self._host.reader.wake()

    def _set_back(self) -> None:
        """Read again, from the committed position on, whatever a new socket must hear."""
        self._lateness.closed(time.monotonic(), self._uplink.fed)
        self._uplink.detach()
        self._hearing.forget()
        self._inbox.set_back()
        self.epoch += 1

    async def _connect(self) -> Conversation | None:
        """Connect, however long it takes; None if the service will never have this session."""
        self._enter(Phase.CONNECTING)
        self._begin_outage()
        try:
            stream = await self._dialer.dial()
        except SttPermanent as error:
            self._fail(error.code or "stt_refused", str(error), status=error.status)
            return None
        now = time.monotonic()
        if self._inbox.judge_held(now):
            self._set_back()
        self._parts.standing.connected(stream.request_id)
        log.info("%s: connected, request %s", self.name, stream.request_id)
        progressed = self._ledger.committed_bytes > self._reached
        self._reached = self._ledger.committed_bytes
        self._reached_sent = self._lateness.sent_until
        self._hearing.socket_opened(now)
        self._uplink.attach(stream, now)
        self._lateness.opened(now, self._uplink.fed)
        self._parts.upkeep.connected(now, progressed=progressed)
        self._conversation = Conversation(self._host, self.name, self._parts, stream, now)
        self._look()
        self._conversation.drain(now)
        return self._conversation

    def _begin_outage(self) -> None:
        """Count the time without a working socket from now on, unless it is counted already."""
        if self._outage_since is None:
            self._outage_since = time.monotonic()

    def _end_outage(self) -> None:
        self._outage_since, self._outage_told, self._dialer.failure = None, False, None

    def _publish_outage(self) -> None:
        failure = self._dialer.failure
        self._narrator.error(
            "stt_unavailable",
            f"no connection to the STT provider: {failure or 'still waiting for the first'}",
            status=failure.status if failure else 0,
        )

    async def _flushed(self) -> None:
        """All that was sent is published: end, or let go of the socket until there is audio."""
        self._end_outage()
        if self._inbox.cut_short:
            return  # the next socket begins with the audio that is late
        if self._inbox.read_to_end:
            self._finish("end")
        else:
            await self._dialer.hang_up()

    async def _lose(self, error: SttError) -> None:
        if is_idle_close(error.status, str(error)):
            self._host.stats.sockets_lost["idle"] += 1
            await self._dialer.hang_up()
            return
        self._host.stats.sockets_lost[error.fault_class] += 1
        if isinstance(error, SttPermanent):
            self._fail("stt_refused", str(error), status=error.status)
            return
        log.info("%s: socket lost: %s", self.name, error)
        progressed = self._ledger.committed_bytes > self._reached
        if progressed:
            self._end_outage()
        self._enter(Phase.CONNECTING)
        self._begin_outage()
        self._dialer.failure = error
        # A long turn commits nothing, but a socket that was sent more of it was of use.
        sent = self._lateness.sent_until > self._reached_sent
        await self._dialer.pause(progressed=progressed or sent)

    # -- the end

    def _finish(self, reason: SessionEndReason) -> None:
        self._parts.reports.close()
        self._narrator.end(reason, self._tracker.state.turn)
        self._alone = Phase.OVER

    def _fail(self, code: str, message: str, *, status: int) -> None:
        """End the session for a fault that no retry can cure."""
        self._parts.reports.close()
        self._narrator.tell(self._tracker.conclude("close"))
        self._narrator.error(code, message, status=status, fatal=True)
        self._finish("error")
        self._epitaph = Epitaph(code, message)

    def _bury(self) -> None:
        """Put a session that failed on the dead stream, now that its end is ours for certain."""
        if self._epitaph is not None:
            log.error("%s: ended: %s", self.name, self._epitaph.message)
            fence, keys = self.ownership.fence, self._host.keys
            self._host.bury(fence.entry, keys.sessions, self._entry.session, *self._epitaph, {})
