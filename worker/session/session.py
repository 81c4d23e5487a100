"""One session, from its claim to its tombstone, over any number of sockets.

The reader passes audio, the socket passes messages, and the ticker passes the time, all by plain
calls. The session's own task waits for audio, connects, and waits for the end of each socket.
`worker.core.phases` decides what each input means.
"""

import logging
import time
from functools import partial
from typing import NamedTuple

import anyio
from redis.exceptions import ResponseError

from schemas.turns import SessionEndReason
from worker.bus.audio_reader import Entries
from worker.bus.clock import EntryAges
from worker.bus.committer import CRASHED
from worker.bus.ownership import OwnedSession
from worker.context import WorkerContext
from worker.core.connection_health import RepeatedLosses, SilentSocket, Watchdog
from worker.core.phases import Action, Input, Phase
from worker.core.provider_errors import is_idle_close, is_provider_error
from worker.core.send_limits import Pacer
from worker.core.transcripts import UpdateThrottle
from worker.core.unanswered_speech import UnansweredSpeech, UnansweredTurn
from worker.errors import (
    SttBusyError,
    SttCredentialsError,
    SttError,
    SttPermanentError,
    SttProtocolError,
    SttShortageError,
    SttTooBigError,
    SttTransientError,
    SttUnknownCommandError,
)
from worker.session.boundary import TurnBoundaryFinder
from worker.session.checkpoint import Checkpoint
from worker.session.connection import Connection
from worker.session.connector import Connector
from worker.session.ingest import AudioIngest
from worker.session.providers import SessionProviders
from worker.session.publisher import EventPublisher
from worker.session.receiver import MessageReceiver
from worker.session.reports import Reports
from worker.session.sender import AudioSender
from worker.session.state import SessionState
from worker.telemetry.traces import SessionTrace

log = logging.getLogger(__name__)

OUTAGE_EVENT_AFTER_S = 3.0
"""Delay before an outage is published: time without a socket."""

SAME_PLACE_MS = 2_000
"""Maximum distance between two loss positions that count as the same, because lag varies."""

_UNRELATED_TO_AUDIO = (SttPermanentError, SttCredentialsError, SttBusyError)
"""Errors that are unrelated to the audio."""

_CAUSED_BY_WORKER = (SttPermanentError, SttTooBigError, SttUnknownCommandError, SttShortageError)
"""Errors that do not show that the provider fails: what the worker sent, or its machine, did it."""

_BAD_REQUEST = 400
"""Status of an error about the pace or the settings."""


class _Fatal(NamedTuple):
    """An error that no retry can fix, as the consumers receive it."""

    code: str
    message: str
    status: int


class Session:
    """Runs one owned session."""

    def __init__(
        self, context: WorkerContext, ownership: OwnedSession, seq: int, checkpoint: Checkpoint
    ) -> None:
        """Continue at `checkpoint`; `seq` is the number of the last published event."""
        entry, settings = ownership.entry, context.settings
        self.ownership = ownership
        self.name = ownership.name
        self.lane = entry.lane
        audio_key = context.keys.audio(entry.lane, entry.session)
        self.audio_key = audio_key.encode()
        self.rewinds = 0
        """Number of times the cursor moved back; reads from before are invalid."""
        self._context = context
        choices = context.choices_of(entry)
        self._state = state = SessionState(entry, checkpoint, settings.max_lag_s, choices[0].name)
        self._lifecycle = state.lifecycle
        self._ledger = state.ledger
        self._sender = sender = AudioSender(
            entry.encoding,
            entry.sample_rate,
            state.ledger,
            Pacer(settings.replay_speed),
            context.stats,
            context.frame_limit,
        )
        self._publisher = publisher = EventPublisher(
            context,
            ownership,
            seq,
            partial(state.event_context, sender),
            partial(state.checkpoint, sender, context.provider_lag),
        )
        self._providers = SessionProviders(
            self.name,
            choices,
            context.breakers,
            settings.stt_failover_s,
            context.stats,
            publisher.trace,
            time.monotonic(),
            checkpoint.provider,
        )
        boundary = TurnBoundaryFinder(sender, context.stalls, context.provider_lag)
        throttle = UpdateThrottle(settings.turn_update_interval_ms)
        self._receiver = MessageReceiver(state, boundary, sender, publisher, throttle)
        self._reports = Reports(context, audio_key, entry.session, state.notices, publisher)
        self._ages = EntryAges(context.clock, ownership.run, untimed=state.notices.untimed)
        self._ingest = AudioIngest(
            context,
            state,
            self._ages,
            sender,
            self._receiver,
            publisher,
            self._reports,
        )
        self.poll_schedule = self._ingest.poll_schedule
        """Poll schedule of the audio stream; the reader uses it."""
        self._connector = Connector(
            context,
            ownership,
            self._providers,
            state.tracker,
            state.configs,
            publisher,
            self._reports,
        )
        self._connection: Connection | None = None
        self._watchdog = Watchdog()
        self._silence = SilentSocket()
        self._speech = UnansweredSpeech()
        self._unanswered = UnansweredTurn(settings.stt_failover_s)
        self._losses = RepeatedLosses(sender.bytes_of(SAME_PLACE_MS))
        # Values at the time the last socket opened.
        self._committed_at_connect = state.ledger.committed_bytes
        self._reached_sent = state.lateness.sent_until
        self._wake: anyio.Event | None = None  # while the session's task waits for work
        self._phase_since = time.monotonic()
        self._outage_since: float | None = None  # start of the outage, until a socket works
        self._outage_published = False
        self._works = False  # whether the current socket is known to work
        self._leaving = False  # whether the current socket is left for another provider
        self._moved_at_byte = -1  # committed position at which another provider was tried
        self._parking = False  # until the socket is closed and the permit released
        self._unreadable = ""  # why the audio key cannot be read
        self._fatal: _Fatal | None = None
        if state.tracker.open:
            self.trace.turn_started(checkpoint.turns.turn, time.time(), taken_over=True)
        context.provider_lag.seed(checkpoint.lag_s)

    # -- called by the reader, the ticker and the backlog drainer

    @property
    def phase(self) -> Phase:
        """State of the connection."""
        return self._lifecycle.phase

    @property
    def provider(self) -> str:
        """Name of the provider of the current socket, or of the last one."""
        return self._state.provider

    @property
    def cursor(self) -> str:
        """Entry id after which to read."""
        return self._ingest.cursor

    @property
    def wants_audio(self) -> bool:
        """Whether the reader should read audio for this session now."""
        if self._ingest.end_reached or self._unreadable:
            return False
        match self._lifecycle.phase:
            case Phase.LIVE:
                return self._sender.has_room and not self._ingest.awaits_flush
            case Phase.PARKED | Phase.CONNECTING:
                return not (self._sender.has_whole_sample or self._ingest.awaits_flush)
            case _:
                return False

    @property
    def catching_up(self) -> bool:
        """Whether audio waits because of pacing."""
        return self.phase is Phase.LIVE and not self._sender.is_drained

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
        if not self._sender.has_whole_sample:
            return 0.0
        # On a live socket at most the sender's buffer is unsent: the last entry read is close.
        oldest = self._ledger.oldest if self._connection is None else self.cursor
        return self._ages.age_s(oldest or self.cursor)

    @property
    def read_uncommitted_bytes(self) -> int:
        """Bytes of audio that were read and that no published event covers."""
        return self._ledger.read_bytes - self._ledger.committed_bytes

    @property
    def can_release(self) -> bool:
        """Whether releasing the session now costs consumers nothing.

        A session that waits for a socket gets one from the next worker just as soon.
        """
        match self.phase:
            case Phase.LIVE:
                return not self._state.tracker.open
            case Phase.PARKED:
                return not self._parking  # the next owner does not release this one's permit
            case Phase.CONNECTING:
                return True
            case _:
                return False

    @property
    def blocked_by_shortage(self) -> bool:
        """Whether the session waits for a socket that this machine cannot open."""
        return self.phase is Phase.CONNECTING and self._connector.blocked_by_shortage

    @property
    def fenced_reason(self) -> str | None:
        """Why no commit is accepted: lease lost, state lost, internal error; None if they are."""
        return self._publisher.fenced_reason

    def feed(self, entries: Entries, now: float) -> None:
        """Accept entries that follow the cursor and were just read."""
        if self._publisher.fenced_reason is not None:
            return
        action = self._lifecycle.process(Input.ENTRIES)
        if self._ingest.awaits_flush:
            return  # they are read again after the flush
        match action:
            case Action.SEND:
                self._ingest.accept(entries, now, live=True)
                if not (self._ingest.steady and self._sender.is_drained):
                    self.drain(now)
            case Action.HOLD:
                self._ingest.accept(entries, now, live=False)
                self._wake_up()

    def drain(self, now: float) -> None:
        """Send what pacing allows; flush after the last audio."""
        connection = self._connection
        if connection is None or self.phase is not Phase.LIVE:
            return
        if self._sender.drain(now):
            self._context.backlog.add(self)
        elif self._ingest.turn_end_reached:
            connection.end_turn(now)
        elif self._ingest.end_reached or self._ingest.cut_short:
            self._ingest.report_dropped()
            connection.flush(now)

    def on_unreadable_key(self, error: ResponseError) -> None:
        """Record that the audio key does not hold a stream."""
        self._unreadable = str(error)
        self._wake_up()

    def is_due(self, now: float) -> bool:
        """Whether deadlines have to be checked now."""
        return now >= self._state.next_tick_at

    def tick(self, now: float) -> None:
        """Check every deadline; called about ten times a second while `is_due`."""
        action = self._lifecycle.process(Input.TICK)
        if action is not Action.NOTHING:
            self._reports.tick(now)
        match action:
            case Action.CHECK_SOCKET if self._connection is not None:  # true in these phases
                self._connection.tick(now)
                if self._ingest.end_reached:
                    self.drain(now)  # a forced end may have come with it
                self._state.next_tick_at = self._connection.next_tick_at
                if self._outage_since is not None and self._connection.has_lasted(now):
                    self._end_outage()
                self._check_provider(self._connection, now)
            case Action.CHECK_OUTAGE:
                self._check_outage(now)
            case Action.CHECK_IDLE if self._is_idle:
                self._wake_up()

    # -- the session's task

    async def run(self) -> None:
        """Run until the session ends. Cancel to release it.

        Raises `FencedError` if another worker owns the session.
        """
        self._context.reader.add(self)
        try:
            while self.phase is not Phase.OVER:
                await self._wait_for_work()
                if self.phase is Phase.CONNECTING:
                    connection = await self._connect()
                    if connection is not None:
                        await self._run_connection(connection)
            await self._publisher.wait_committed()
            self._dead_letter()
            await self._connector.release_permit()
        finally:
            self._lifecycle.process(Input.STOP)
            self._context.reader.remove(self)

    def verify_ownership(self) -> None:
        """Commit, even without events, to check that this worker still owns the session."""
        self._publisher.request_commit()

    def fail(self) -> None:
        """Stop committing after an internal error: the state in memory may be wrong."""
        self._publisher.abort(CRASHED)

    async def wait_committed(self) -> None:
        """Wait until everything published so far is committed; raises `FencedError`."""
        publisher = self._publisher
        sent_more = self._state.lateness.sent_until > self._ledger.committed_bytes
        if sent_more and publisher.fenced_reason is None:
            publisher.request_commit()  # commits how far audio was sent
        await publisher.wait_committed()

    async def _wait_for_work(self) -> None:
        """Wait until there is audio, or until the session is over."""
        self._request_read()
        while not self._has_work:
            self._wake = anyio.Event()
            await self._wake.wait()
            self._wake = None
            if self._is_idle and not self._has_work:
                self._receiver.end_turn_early()
                self._end(Input.IDLE, "idle")
                return
        nothing_left = not self._sender.has_whole_sample and not self._state.tracker.open
        if self._unreadable:
            fatal = _Fatal("audio_unreadable", f"audio key: {self._unreadable}", status=0)
            self._end(Input.FATAL, "error", fatal)
        elif self._ingest.end_reached and nothing_left:
            self._end(Input.END, "end")
        else:
            self._enter(Input.WORK)

    async def _connect(self) -> Connection | None:
        """Connect, however long it takes; None if the provider rejects the session for good."""
        self._begin_outage()
        try:
            stream = await self._connector.connect()
        except SttPermanentError as error:
            fatal = _Fatal(error.code or "stt_refused", str(error), error.status)
            self._end(Input.FATAL, "error", fatal)
            return None
        now = time.monotonic()
        if self._ingest.check_buffered(now):
            self._rewind()  # read it again as live audio, which may be dropped
        self._state.connected(stream.provider.name, stream.request_id)
        log.info(
            "%s: provider %s: connected, request %s",
            *(self.name, stream.provider.name, stream.request_id),
        )
        progressed = self._ledger.committed_bytes > self._committed_at_connect
        self._committed_at_connect = self._ledger.committed_bytes
        self._reached_sent = self._state.lateness.sent_until
        self._receiver.socket_opened(now, stream.provider, progressed=progressed)
        self._sender.attach(stream, now)
        sent_until = self._state.lateness.sent_until
        self._state.usage.opened(stream.provider.name, now, self._sender.session_bytes, sent_until)
        self._state.lateness.opened(now, self._sender.session_bytes)
        self._connection = connection = Connection(
            self._context,
            self._state,
            self._sender,
            self._ingest,
            self._receiver,
            self._publisher,
            self._reports,
            self._watchdog,
            self._silence,
            self._speech,
            self._unanswered,
            stream,
            now,
            silence_timeout_s=self._providers.silence_timeout_s,
        )
        self._works = self._leaving = False
        self._enter(Input.CONNECTED)
        self.drain(now)
        return connection

    async def _run_connection(self, connection: Connection) -> None:
        """Run one connection until its socket is closed or lost, then park or wait to reconnect."""
        try:
            async with connection.stream:
                await connection.run()
                action = self._on_flushed(connection)
        except SttError as error:
            # No other task ran meanwhile: after an error, `__aexit__` aborts and does not wait.
            action = self._on_lost(error, connection)
        finally:
            if self._connection is not None:  # released, or an internal error
                self._rewind()
        match action:
            case Action.PARK:
                await self._connector.release_permit()
                self._parking = False
            case Action.RECONNECT:
                # A long turn commits nothing, but a socket that sent more of it made progress.
                sent_more = self._state.lateness.sent_until > self._reached_sent
                if not self._leaving:
                    await self._connector.wait_before_reconnect(
                        progressed=self._committed_more or sent_more
                    )
                self._enter(Input.RETRY)

    def _on_flushed(self, connection: Connection) -> Action:
        """Handle the end of a flush: everything sent is committed."""
        self._check_works(connection, time.monotonic())  # the last tick may be older
        self._end_outage()
        if self._ingest.cut_short:
            action = self._enter(Input.FLUSHED_EARLY)
        elif self._ingest.end_reached:
            action = self._end(Input.FLUSHED_END, "end")
        else:
            action = self._enter(Input.FLUSHED)
        self._rewind()
        self.trace.flush_ended(None)
        return action

    def _on_lost(self, error: SttError, connection: Connection) -> Action:
        """Handle a lost socket: its uncommitted audio will be sent again."""
        if isinstance(error, SttPermanentError) and self._connector.revoke_config(error):
            error = SttTransientError(str(error), status=error.status, request_id=error.request_id)
        if isinstance(error, SttUnknownCommandError):
            self._context.without_forced_end.add(self._state.provider)
        if self._leaving:
            return self._on_left()
        self.trace.socket_lost(error, self._sent_uncommitted_s)
        idle = is_idle_close(error.status, str(error))
        if not idle:
            repeated = self._check_repeated_loss(error, received_turns=connection.received_turns)
            if not (isinstance(error, _CAUSED_BY_WORKER) or error.status == _BAD_REQUEST):
                since = connection.silent_since or time.monotonic()
                self._providers.failed(error, since, stuck=connection.stuck or repeated)
        replayed_s = self._sent_uncommitted_s
        self._rewind()
        self.trace.flush_ended(error)
        self._context.stats.sockets_lost["idle" if idle else error.error_class] += 1
        if idle:
            return self._enter(Input.CLOSED_IDLE)
        if isinstance(error, SttPermanentError) and not self._connector.give_up(error):
            fatal = _Fatal("stt_refused", str(error), error.status)
            return self._end(Input.FATAL, "error", fatal)
        log.info(
            "%s: socket lost, replaying %.1f s after entry %s: %s",
            *(self.name, replayed_s, self.cursor, error),
        )
        if self._committed_more:
            self._end_outage()
        self._begin_outage()
        self._connector.failure = error
        return self._enter(Input.LOST)

    def _on_left(self) -> Action:
        """Handle a socket that the session left, to continue at another provider."""
        log.info("%s: replaying %.1f s", self.name, self._sent_uncommitted_s)
        self._rewind()
        self._begin_outage()
        return self._enter(Input.LOST)

    def _check_provider(self, connection: Connection, now: float) -> None:
        """Report a socket that works, and leave it if the session moves to another provider."""
        self._check_works(connection, now)
        inside_turn, providers = self._receiver.inside_turn, self._providers
        if (
            not providers.several
            or self.phase is not Phase.LIVE
            or not connection.stream.socket.open
            or self._leaving
        ):
            return
        if inside_turn and connection.ignores_turn(now) and providers.can_leave(now):
            connection.leave_turn()
        elif providers.check(now, connection.opened_at, inside_turn=inside_turn):
            self._leaving = True
            connection.stream.socket.abort("the session moves to another provider")

    def _check_works(self, connection: Connection, now: float) -> None:
        """Report once that the socket works."""
        if not self._works and connection.works(now, inside_turn=self._receiver.inside_turn):
            self._works = True
            self._providers.works()

    def _check_repeated_loss(self, error: SttError, *, received_turns: bool) -> bool:
        """Skip audio at which the provider fails on one socket after another.

        Returns whether another provider has to try it before. Each audio is tried there once.

        Three sockets in a row lost at the same place are enough if the provider certainly caused
        each, otherwise five in a minute or more (`RepeatedLosses` in `worker.core`). Everything
        sent is committed, and the open turn ends.
        """
        if isinstance(error, _UNRELATED_TO_AUDIO):
            return False
        too_big = isinstance(error, SttTooBigError)
        if too_big and self._can_send_less(error):
            return False
        broken = isinstance(error, SttProtocolError)
        if self._lifecycle.flushing and (broken or is_provider_error(error)):
            self._receiver.flush_failed()
        if not (received_turns or broken or too_big):
            return False  # an outage
        certain = too_big or (broken and received_turns)
        progress = (self._ledger.committed_bytes, self._state.tracker.last_growth)
        now = time.monotonic()
        if self._losses.must_skip(self._sender.session_bytes, progress, now, certain=certain):
            if self._providers.several and self._moved_at_byte != self._ledger.committed_bytes:
                self._moved_at_byte = self._ledger.committed_bytes
                self._losses = RepeatedLosses(self._sender.bytes_of(SAME_PLACE_MS))
                return True
            log.warning(
                "%s: skipping %.1f s of audio at which the provider fails repeatedly (%s)",
                *(self.name, self._sent_uncommitted_s, error),
            )
            self._receiver.abandon_turn()
        return False

    def _can_send_less(self, error: SttError) -> bool:
        """Lower the worker's limit of message sizes; return whether it can be lower."""
        limit, before = self._context.frame_limit, self._context.frame_limit.max_bytes
        possible = limit.refused(self._sender.largest)
        if limit.max_bytes < before:
            log.warning(
                "%s: the provider rejects messages of %d bytes (%s); this worker sends at most %d",
                *(self.name, self._sender.largest, error, limit.max_bytes),
            )
        return possible

    def _enter(self, input_: Input) -> Action:
        """Enter the next phase; return what to do."""
        action = self._lifecycle.process(input_)
        self._phase_since = time.monotonic()
        self._parking = action is Action.PARK
        self._state.next_tick_at = 0.0
        self._request_read()
        return action

    @property
    def _has_work(self) -> bool:
        return (
            bool(self._unreadable)
            or self._sender.has_whole_sample
            or self._ingest.end_reached
            or self._ingest.turn_end_reached
        )

    @property
    def _is_idle(self) -> bool:
        """Whether the producer seems to be gone. Only valid without a socket."""
        if self.poll_schedule.last_polled_at < self._phase_since:
            return False  # the stream was not polled since this phase began
        return self._ingest.producer_idle_s() > self._context.settings.session_idle_s

    @property
    def _sent_uncommitted_s(self) -> float:
        """Seconds of audio sent on this socket that no event covers."""
        return self._sender.ms_of(self._sender.sent_uncommitted_bytes) / 1000

    @property
    def _committed_more(self) -> bool:
        """Whether audio was committed since the last socket opened."""
        return self._ledger.committed_bytes > self._committed_at_connect

    def _wake_up(self) -> None:
        """Make the session's task look for work, if it waits for some."""
        if self._wake is not None:
            self._wake.set()

    def _request_read(self) -> None:
        """Make the reader poll this session at once."""
        self._context.reader.poll_now(self)

    def _rewind(self) -> None:
        """Drop the socket and go back to the committed position, to send what follows it again."""
        self._connection = None
        now = time.monotonic()
        self._state.usage.closed(now, *self._sender.usage)
        self._state.lateness.closed(now, self._sender.session_bytes)
        self._state.rewind()
        self._sender.detach()
        self._receiver.forget()
        self._ingest.rewind()
        self.rewinds += 1

    def _begin_outage(self) -> None:
        """Start measuring the outage, unless it is being measured already."""
        if self._outage_since is None:
            self._outage_since = time.monotonic()

    def _check_outage(self, now: float) -> None:
        """Publish the outage, once, if it lasts."""
        since = self._outage_since
        if since is None or self._outage_published or now - since <= OUTAGE_EVENT_AFTER_S:
            return
        self._outage_published = True
        failure = self._connector.failure
        self._publisher.publish_error(
            "stt_unavailable",
            f"no connection to the STT provider: {failure or 'still waiting for the first'}",
            status=failure.status if failure else 0,
        )

    def _end_outage(self) -> None:
        self._outage_since, self._outage_published, self._connector.failure = None, False, None

    # -- the end

    def _end(self, input_: Input, reason: SessionEndReason, fatal: _Fatal | None = None) -> Action:
        """Publish the remaining reports, the error if there is one, and the session's end."""
        self._reports.close()
        if fatal is not None:
            self._fatal = fatal
            self._publisher.publish(self._state.tracker.force_end("close"))
            self._publisher.publish_error(
                fatal.code, fatal.message, status=fatal.status, fatal=True
            )
        usage = self._state.usage_so_far(self._sender)
        self._publisher.publish_end(reason, self._state.tracker.state.turn, usage)
        return self._enter(input_)

    def _dead_letter(self) -> None:
        """Write a dead letter for a failed session, once its end is committed."""
        if self._fatal is not None:
            log.error("%s: ended: %s", self.name, self._fatal.message)
            entry_id, session = self.ownership.fence.entry_id, self.ownership.entry.session
            self._context.dead_letters.put(
                entry_id,
                self._context.keys.sessions,
                session,
                self._fatal.code,
                self._fatal.message,
                {},
            )
