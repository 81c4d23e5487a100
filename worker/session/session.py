"""The lifecycle of one session, from its claim to its tombstone, over any number of sockets.

The reader passes audio and the ticker passes the time, both by plain calls. The session's own task
connects, receives, and decides what is committed.

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
"""Delay before an outage is published: time without a socket."""


class Phase(Enum):
    """State of a session's connection."""

    PARKED = "parked"
    CONNECTING = "connecting"
    LIVE = "live"
    FLUSHING = "flushing"
    OVER = "over"


class Failure(NamedTuple):
    """Why a session failed, for the dead letter."""

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
        """Whether the worker restored the session's entry after Redis lost it."""
        self._context = context
        self._entry = entry
        self._parts = parts = Parts.assemble(context, ownership, self.audio_key, seq, snapshot)
        self.poll_schedule = parts.poll_schedule
        """Poll schedule of the audio stream; the reader uses it."""
        self._ledger = parts.ledger
        self._lateness = parts.lateness
        self._sender = parts.sender
        self._tracker = parts.tracker
        self._publisher = parts.publisher
        self._receiver = parts.receiver
        self._ingest = parts.ingest
        self._connector = parts.connector
        if self._tracker.open:
            self.trace.turn_started(snapshot.turns.turn, time.time(), taken_over=True)
        context.provider_lag.seed(snapshot.lag_s)
        # Values at the time the previous socket opened.
        self._committed_at_connect = self._ledger.committed_bytes
        self._reached_sent = self._lateness.sent_until
        self._failure: Failure | None = None
        self._wake = anyio.Event()
        self._connection: LiveConnection | None = None
        self._phase = Phase.PARKED  # the phase while there is no connection
        self._phase_since = time.monotonic()
        self._outage_since: float | None = None  # start of the outage, until a socket works
        self._outage_published = False
        self._unreadable = ""

    @property
    def phase(self) -> Phase:
        """State of the connection."""
        if self._connection is None or self._phase is Phase.OVER:
            return self._phase
        return Phase.FLUSHING if self._connection.flushing else Phase.LIVE

    # -- called by the reader and the ticker

    @property
    def cursor(self) -> str:
        """Entry id after which to read."""
        return self._ingest.cursor

    @property
    def wants_audio(self) -> bool:
        """Whether the reader should read audio for this session now."""
        if self._phase is Phase.OVER or self._ingest.end_reached or self._unreadable:
            return False
        if self._connection is None:
            return not self._sender.holds_audio
        stops = self._connection.flushing or self._ingest.cut_short
        return self._sender.has_room and not stops

    @property
    def chunk_s(self) -> float:
        """Duration of the last chunk that was read, in seconds."""
        return self._sender.chunk_ms / 1000

    @property
    def trace(self) -> SessionTrace:
        """Trace spans of the session."""
        return self._publisher.trace

    @property
    def lag_s(self) -> float:
        """Age of the oldest audio that was read and not yet sent, in seconds; 0 if none."""
        if not self._sender.holds_audio:
            return 0.0
        # On a live socket the unsent audio is at most the sender's buffer, so the cursor will do.
        oldest = self._ledger.oldest if self._connection is None else self.cursor
        return self._parts.ages.age_s(oldest or self.cursor)

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of audio that were read and that no published event covers."""
        return self._ledger.read_bytes - self._ledger.committed_bytes

    @property
    def can_release(self) -> bool:
        """Whether releasing the session now costs consumers nothing.

        A session that waits for a socket gets one from the next worker just as soon.
        """
        between_turns = self.phase is Phase.LIVE and not self._tracker.open
        return between_turns or self.phase in (Phase.PARKED, Phase.CONNECTING)

    @property
    def stranded(self) -> bool:
        """Whether the session waits for a socket that this machine cannot open."""
        return self.phase is Phase.CONNECTING and self._connector.stranded

    @property
    def fenced_reason(self) -> str | None:
        """Why commits are refused because another worker owns the session; None if they are not."""
        return self._publisher.fenced_reason

    def feed(self, entries: Entries, now: float) -> None:
        """Accept entries that follow the cursor and were just read."""
        connection = self._connection
        if self._phase is Phase.OVER or self.fenced_reason is not None:
            return
        if connection is None:
            self._ingest.accept(entries, now, live=False)
            self._wake.set()
        elif not (connection.flushing or self._ingest.cut_short):
            self._ingest.accept(entries, now, live=True)
            connection.drain(now)
        # Otherwise the entries are read again after the flush, or by another owner.

    def on_unreadable_key(self, error: ResponseError) -> None:
        """Record that the audio key does not hold a stream."""
        self._unreadable = str(error)
        self._wake.set()

    def tick(self, now: float) -> None:
        """Check every deadline; called about ten times a second."""
        if self._phase is not Phase.OVER:
            self._parts.reports.tick(now)
        if self._connection is not None:
            self._connection.tick(now)
            if self._outage_since is not None and self._connection.works(now):
                self._end_outage()
        elif self._outage_since is not None and self._phase is Phase.CONNECTING:
            late = now - self._outage_since > OUTAGE_EVENT_AFTER_S
            if late and not self._outage_published:
                self._outage_published = True
                self._publish_outage()
        elif self._phase is Phase.PARKED and self._is_idle:
            self._wake.set()

    # -- the session's task

    async def run(self) -> None:
        """Run until the session ends. Cancel to release it.

        Raises `FencedError` if another worker owns the session.
        """
        self._context.reader.add(self)
        try:
            while self._phase is not Phase.OVER:
                await self._run_connection()
            await self._publisher.wait_committed()
            self._parts.defects.summarize()
            self._dead_letter()
            await self._connector.release_permit()
        finally:
            self._phase = Phase.OVER
            self._context.reader.remove(self)

    def verify_ownership(self) -> None:
        """Commit, even without events, to check that this worker still owns the session."""
        self._publisher.request_commit()

    def fail(self) -> None:
        """Stop committing after an internal error: the state in memory may be wrong."""
        self._publisher.abort(INTERNAL_ERROR)

    async def wait_committed(self) -> None:
        """Wait until everything published so far is committed; raises `FencedError`."""
        publisher = self._publisher
        if (
            self._lateness.sent_until > self._ledger.committed_bytes
            and publisher.fenced_reason is None
        ):
            publisher.request_commit()  # commits how far audio was sent
        await publisher.wait_committed()

    async def _run_connection(self) -> None:
        """Wait for work, then run one connection."""
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
        """Whether the producer seems to be gone. Only valid without a socket."""
        if self.poll_schedule.last_polled_at < self._phase_since:
            return False  # the stream was not polled since this phase began
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
        """Make the reader poll this session at once."""
        self.poll_schedule.poll_now()
        self._context.reader.wake()

    def _rewind(self) -> None:
        """Go back to the committed position, so that a new socket receives the audio after it."""
        self._lateness.closed(time.monotonic(), self._sender.session_bytes)
        self._sender.detach()
        self._receiver.forget()
        self._ingest.rewind()
        self.epoch += 1

    async def _connect(self) -> LiveConnection | None:
        """Connect, however long it takes; None if the provider rejects the session for good."""
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
        """Start measuring the outage, unless it is being measured already."""
        if self._outage_since is None:
            self._outage_since = time.monotonic()

    def _end_outage(self) -> None:
        self._outage_since, self._outage_published, self._connector.failure = None, False, None

    def _publish_outage(self) -> None:
        failure = self._connector.failure
        self._publisher.publish_error(
            "stt_unavailable",
            f"no connection to the STT provider: {failure or 'still waiting for the first'}",
            status=failure.status if failure else 0,
        )

    async def _after_flush(self) -> None:
        """End the session after a flush, or release the permit until there is audio."""
        self._end_outage()
        if self._ingest.cut_short:
            return  # the next socket begins with the late audio
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
        # A long turn commits nothing, but a socket that sent more of it made progress.
        sent = self._lateness.sent_until > self._reached_sent
        await self._connector.wait_before_reconnect(progressed=progressed or sent)

    # -- the end

    def _finish(self, reason: SessionEndReason) -> None:
        self._parts.reports.close()
        self._publisher.publish_end(reason, self._tracker.state.turn)
        self._phase = Phase.OVER

    def _fail(self, code: str, message: str, *, status: int) -> None:
        """End the session after an error that no retry can fix."""
        self._parts.reports.close()
        self._publisher.publish(self._tracker.force_end("close"))
        self._publisher.publish_error(code, message, status=status, fatal=True)
        self._finish("error")
        self._failure = Failure(code, message)

    def _dead_letter(self) -> None:
        """Write a dead letter for a failed session, once its end is committed."""
        if self._failure is not None:
            log.error("%s: ended: %s", self.name, self._failure.message)
            fence, keys = self.ownership.fence, self._context.keys
            self._context.dead_letters.put(
                fence.entry_id, keys.sessions, self._entry.session, *self._failure, {}
            )
