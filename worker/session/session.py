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

from schemas.turns import SessionEndReason as SessionEndReason
from worker.bus.audio_reader import Entries
from worker.bus.committer import INTERNAL_ERROR
from worker.bus.ownership import Ownership
from worker.context import WorkerContext
from worker.core.provider_errors import is_idle_close
from worker.errors import SttError, SttPermanentError, SttTransientError
from worker.session.checkpoint import Checkpoint
from worker.session.connection import LiveConnection
from worker.session.parts import Parts
from worker.telemetry.traces import SessionTrace

log = logging.getLogger(__name__)

OUTAGE_EVENT_AFTER_S = 3.0
"""How long a session may be without a socket before consumers are told."""


class Phase(Enum):
    """Where a session stands with its socket."""

    PARKED = "parked"
    CONNECTING = "connecting"
    LIVE = "live"
    FLUSHING = "flushing"
    OVER = "over"


class Failure(NamedTuple):
    """Why a session failed, for the dead stream."""

    code: str
    message: str


class Session:
    """Runs one owned session."""

    def __init__(
        self, context: WorkerContext, ownership: Ownership, seq: int, snapshot: Checkpoint
    ) -> None:
        entry = ownership.entry
        self.ownership = ownership
        self.name = ownership.name
        self.lane = entry.lane
        self.audio_key = context.keys.audio(entry.lane, entry.session)
        self.epoch = 0
        self.entry_restored = False
        """Its entry was put back, for Redis had lost it."""
        self._context = context
        self._entry = entry
        self._parts = parts = Parts.assemble(context, ownership, self.audio_key, seq, snapshot)
        self.poll_schedule = parts.poll_schedule
        """Of its audio stream; the reader's."""
        self._ledger = parts.ledger
        self._lateness = parts.lateness
        self._sender = parts.sender
        self._tracker = parts.tracker
        self._narrator = parts.narrator
        self._receiver = parts.receiver
        self._ingest = parts.ingest
        self._connector = parts.connector
        if self._tracker.open:
            self.trace.turn_started(snapshot.turns.turn, time.time(), taken_over=True)
        context.provider_lag.seed(snapshot.lag_s)
        # As the socket before this one was opened.
        self._committed_at_connect = self._ledger.committed_bytes
        self._reached_sent = self._lateness.sent_until
        self._failure: Failure | None = None
        self._wake = anyio.Event()
        self._connection: LiveConnection | None = None
        self._phase = Phase.PARKED  # the phase where there is no connection
        self._phase_since = time.monotonic()
        self._outage_since: float | None = None  # of the socket, until one works
        self._outage_published = False
        self._unreadable = ""

    @property
    def phase(self) -> Phase:
        """Where it stands with its socket."""
        if self._connection is None or self._phase is Phase.OVER:
            return self._phase
        return Phase.FLUSHING if self._connection.flushing else Phase.LIVE

    # -- what the reader asks and tells

    @property
    def cursor(self) -> str:
        """Entry id after which to read."""
        return self._ingest.cursor

    @property
    def wants_audio(self) -> bool:
        """Whether to read audio for this session now."""
        if self._phase is Phase.OVER or self._ingest.end_reached or self._unreadable:
            return False
        if self._connection is None:
            return not self._sender.holds_audio
        stops = self._connection.flushing or self._ingest.cut_short
        return self._sender.has_room and not stops

    @property
    def chunk_s(self) -> float:
        """How much sound the chunk held that was read last, in seconds."""
        return self._sender.chunk_ms / 1000

    @property
    def trace(self) -> SessionTrace:
        """Its spans."""
        return self._narrator.trace

    @property
    def lag_s(self) -> float:
        """Age of the oldest audio that was read and waits to be sent, in seconds; 0 if none."""
        if not self._sender.holds_audio:
            return 0.0
        # What a live session holds is newer than that by less than the sender has room for.
        oldest = self._ledger.oldest if self._connection is None else self.cursor
        return self._parts.ages.age_s(oldest or self.cursor)

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of audio that were read and are not covered by published events."""
        return self._ledger.read_bytes - self._ledger.committed_bytes

    @property
    def can_release(self) -> bool:
        """Whether giving the session away now costs nobody anything.

        One that waits for a socket gets it from the next worker no later, inside a turn or not.
        """
        between_turns = self.phase is Phase.LIVE and not self._tracker.open
        return between_turns or self.phase in (Phase.PARKED, Phase.CONNECTING)

    @property
    def stranded(self) -> bool:
        """Whether it waits for a socket that this machine cannot open."""
        return self.phase is Phase.CONNECTING and self._connector.stranded

    @property
    def fenced_reason(self) -> str | None:
        """Why our commits are refused: another worker owns the session. None while they are not."""
        return self._narrator.publisher.fenced_reason

    def feed(self, entries: Entries, now: float) -> None:
        """Take entries that follow the cursor, read just now."""
        connection = self._connection
        if self._phase is Phase.OVER or self.fenced_reason is not None:
            return
        if connection is None:
            self._ingest.accept(entries, now, live=False)
            self._wake.set()
        elif not (connection.flushing or self._ingest.cut_short):
            self._ingest.accept(entries, now, live=True)
            connection.drain(now)
        # else it is read again, if it is wanted, once the flush is over, or by another owner

    def on_unreadable_key(self, error: ResponseError) -> None:
        """Learn that the audio key holds something that is no stream."""
        self._unreadable = str(error)
        self._wake.set()

    def tick(self, now: float) -> None:
        """Look at every deadline; called about ten times a second."""
        if self._phase is not Phase.OVER:
            self._parts.reports.tick(now)
        if self._connection is not None:
            self._connection.tick(now)
            if self._connection.works(now):
                self._end_outage()
        elif self._outage_since is not None and self._phase is Phase.CONNECTING:
            late = now - self._outage_since > OUTAGE_EVENT_AFTER_S
            if late and not self._outage_published:
                self._outage_published = True
                self._publish_outage()
        elif self._phase is Phase.PARKED and self._is_idle:
            self._wake.set()

    # -- its own task

    async def run(self) -> None:
        """Run until the session ended. Cancel to let go of it.

        Raises `CommitRefused` if another worker owns the session.
        """
        self._context.reader.add(self)
        try:
            while self._phase is not Phase.OVER:
                await self._run_connection()
            await self._narrator.publisher.wait_committed()
            self._parts.defects.summarize()
            self._dead_letter()
            await self._connector.release_permit()
        finally:
            self._phase = Phase.OVER
            self._context.reader.remove(self)

    def verify_ownership(self) -> None:
        """Commit, events or not, so that it shows whether the session is still ours."""
        self._narrator.publisher.request_commit()

    def fail(self) -> None:
        """Commit nothing more: a fault of ours struck, and what is held may be wrong."""
        self._narrator.publisher.abort(INTERNAL_ERROR)

    async def wait_committed(self) -> None:
        """Wait until everything published so far is committed; raises `CommitRefused`."""
        publisher = self._narrator.publisher
        if (
            self._lateness.sent_until > self._ledger.committed_bytes
            and publisher.fenced_reason is None
        ):
            publisher.request_commit()  # how far it was sent
        await publisher.wait_committed()

    async def _run_connection(self) -> None:
        """Wait for work; do one socket's worth of it."""
        self._enter(Phase.PARKED)
        while not self._has_work:
            await self._wake.wait()
            self._wake = anyio.Event()
            if self._is_idle and not self._has_work:
                self._receiver.end_turn_early()
                self._finish("idle")
                return
        if self._unreadable:
            self._fail("audio_unreadable", f"audio key: {self._unreadable}", status=0)
            return
        if self._ingest.end_reached and not self._sender.holds_audio and not self._tracker.open:
            self._finish("end")
            return
        connection = await self._connect()
        if connection is None:
            return
        lost: SttError | None = None
        try:
            async with connection.stream:
                await connection.run()
                await self._after_flush()
        except SttError as error:
            lost = error
            if isinstance(error, SttPermanentError) and self._connector.revoke_config(error):
                lost = SttTransientError(
                    str(error), status=error.status, request_id=error.request_id
                )
            self.trace.socket_lost(lost, self._sender.ms_of(self._sender.uncommitted_bytes) / 1000)
            self._parts.upkeep.lost(lost, time.monotonic(), flushing=connection.flushing)
        finally:
            self._connection = None
            self._rewind()
        self.trace.flush_ended(lost)
        if lost is not None:
            await self._on_connection_lost(lost)

    @property
    def _has_work(self) -> bool:
        return bool(self._unreadable) or self._sender.holds_audio or self._ingest.end_reached

    @property
    def _is_idle(self) -> bool:
        """Whether the producer is thought to be gone; to be asked where there is no socket."""
        if self.poll_schedule.last_polled_at < self._phase_since:
            return False  # nobody has looked yet whether there is more
        return (
            self._parts.upkeep.producer_idle_s(self._ingest.last_new_entry_at)
            > self._context.timeouts.idle_s
        )

    def _enter(self, phase: Phase) -> None:
        """Enter a phase without a connection."""
        self._phase = phase
        self._phase_since = time.monotonic()
        self._request_read()

    def _request_read(self) -> None:
        """Have the reader look at once whether audio is wanted."""
        self.poll_schedule.poll_now()
        self._context.reader.wake()

    def _rewind(self) -> None:
        """Read again, from the committed position on, whatever a new socket must hear."""
        self._lateness.closed(time.monotonic(), self._sender.session_bytes)
        self._sender.detach()
        self._receiver.forget()
        self._ingest.rewind()
        self.epoch += 1

    async def _connect(self) -> LiveConnection | None:
        """Connect, however long it takes; None if the service will never have this session."""
        self._enter(Phase.CONNECTING)
        self._begin_outage()
        try:
            stream = await self._connector.connect()
        except SttPermanentError as error:
            self._fail(error.code or "stt_refused", str(error), status=error.status)
            return None
        now = time.monotonic()
        if self._ingest.judge_held(now):
            self._rewind()
        self._parts.checkpoint.connected(stream.request_id)
        log.info("%s: connected, request %s", self.name, stream.request_id)
        progressed = self._ledger.committed_bytes > self._committed_at_connect
        self._committed_at_connect = self._ledger.committed_bytes
        self._reached_sent = self._lateness.sent_until
        self._receiver.socket_opened(now)
        self._sender.attach(stream, now)
        self._lateness.opened(now, self._sender.session_bytes)
        self._parts.upkeep.connected(now, progressed=progressed)
        self._connection = LiveConnection(self._context, self.name, self._parts, stream, now)
        self._request_read()
        self._connection.drain(now)
        return self._connection

    def _begin_outage(self) -> None:
        """Count the time without a working socket from now on, unless it is counted already."""
        if self._outage_since is None:
            self._outage_since = time.monotonic()

    def _end_outage(self) -> None:
        self._outage_since, self._outage_published, self._connector.failure = None, False, None

    def _publish_outage(self) -> None:
        failure = self._connector.failure
        self._narrator.publish_error(
            "stt_unavailable",
            f"no connection to the STT provider: {failure or 'still waiting for the first'}",
            status=failure.status if failure else 0,
        )

    async def _after_flush(self) -> None:
        """All that was sent is published: end, or let go of the socket until there is audio."""
        self._end_outage()
        if self._ingest.cut_short:
            return  # the next socket begins with the audio that is late
        if self._ingest.end_reached:
            self._finish("end")
        else:
            await self._connector.release_permit()

    async def _on_connection_lost(self, error: SttError) -> None:
        if is_idle_close(error.status, str(error)):
            self._context.stats.sockets_lost["idle"] += 1
            await self._connector.release_permit()
            return
        self._context.stats.sockets_lost[error.fault_class] += 1
        if isinstance(error, SttPermanentError):
            self._fail("stt_refused", str(error), status=error.status)
            return
        log.info("%s: socket lost: %s", self.name, error)
        progressed = self._ledger.committed_bytes > self._committed_at_connect
        if progressed:
            self._end_outage()
        self._enter(Phase.CONNECTING)
        self._begin_outage()
        self._connector.failure = error
        # A long turn commits nothing, but a socket that was sent more of it was of use.
        sent = self._lateness.sent_until > self._reached_sent
        await self._connector.wait_before_reconnect(progressed=progressed or sent)

    # -- the end

    def _finish(self, reason: SessionEndReason) -> None:
        self._parts.reports.close()
        self._narrator.publish_end(reason, self._tracker.state.turn)
        self._phase = Phase.OVER

    def _fail(self, code: str, message: str, *, status: int) -> None:
        """End the session for a fault that no retry can cure."""
        self._parts.reports.close()
        self._narrator.publish(self._tracker.force_end("close"))
        self._narrator.publish_error(code, message, status=status, fatal=True)
        self._finish("error")
        self._failure = Failure(code, message)

    def _dead_letter(self) -> None:
        """Put a session that failed on the dead stream, now that its end is ours for certain."""
        if self._failure is not None:
            log.error("%s: ended: %s", self.name, self._failure.message)
            fence, keys = self.ownership.fence, self._context.keys
            self._context.dead_letter(
                fence.entry_id, keys.sessions, self._entry.session, *self._failure, {}
            )
