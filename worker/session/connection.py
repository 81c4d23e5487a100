"""One socket of a session: handles its messages, keeps it alive, and flushes it.

The connection ends when the provider closes the socket after the worker's `close`, or when the
socket is lost.
"""

import asyncio
import logging

import anyio

from schemas.turns import TurnEndReason
from worker.bus.committer import CRASHED
from worker.context import WorkerContext
from worker.core.connection_health import (
    IDLE_PING_INTERVAL_S,
    PING_INTERVAL_S,
    Keepalive,
    SilentSocket,
    Watchdog,
    WatchdogAction,
)
from worker.core.phases import Input
from worker.core.turn_ending import Step, TurnEnding
from worker.core.turn_tracker import ProviderInput
from worker.core.unanswered_speech import (
    MAX_WINDOWS,
    WINDOW_MS,
    UnansweredSpeech,
    UnansweredTurn,
)
from worker.errors import SttError, SttTransientError
from worker.session.ingest import AudioIngest
from worker.session.publisher import EventPublisher
from worker.session.receiver import MessageReceiver
from worker.session.reports import Reports
from worker.session.sender import AudioSender
from worker.session.state import SessionState
from worker.stt.events import (
    AudioTranscribed,
    Event,
    NoTurnToEnd,
    ProviderError,
    TurnEvent,
    UnknownMessage,
    Warned,
)
from worker.stt.stream import Stream

log = logging.getLogger(__name__)

FLUSH_TIMEOUT_S = 10.0
"""Timeout for the provider to close the socket after `close`.

If it sends times, each message that transcribes more of the audio restarts it: a provider that is
late by more than this loses no words, and every new socket would be as late."""

FLUSH_ERROR_GRACE_S = 2.0
"""Timeout for further messages after an in-band error during a flush. If the error is about
settings sent before, and not about the flush, the remaining transcripts still arrive."""

CHECK_INTERVAL_S = 0.4
"""Interval between checks of a socket while audio flows. It is shorter than the filler delay, and
well below the delay up to which a pong proves when the provider received the ping."""

PROGRESS_INTERVAL_S = 5.0
"""Maximum interval between commits while audio is sent. A new owner counts audio that was sent
since the last commit as late."""

PROGRESS_SHARE = 0.1
"""The same as a share of `TURNBUS_MAX_LAG_S`; the shorter interval applies."""

DROP_REPORT_DELAY_S = 1.0
"""Delay before dropped audio is reported if no kept audio follows it."""

PARK_SHARE = 0.9
"""Share of the provider's idle limit after which a socket without audio is closed."""

WORKS_AFTER_S = 3.0
"""Minimum lifetime of a socket that ends an outage: some providers connect and close at once."""

RATE_ERROR_WINDOW_S = 2.0
"""Maximum time after pacing held audio back in which an in-band error is attributed to the pace."""


class Connection:
    """Runs one live socket of a session."""

    def __init__(
        self,
        context: WorkerContext,
        state: SessionState,
        sender: AudioSender,
        ingest: AudioIngest,
        receiver: MessageReceiver,
        publisher: EventPublisher,
        reports: Reports,
        watchdog: Watchdog,
        silence: SilentSocket,
        speech: UnansweredSpeech,
        unanswered: UnansweredTurn,
        stream: Stream,
        now: float,
        *,
        silence_timeout_s: float,
    ) -> None:
        """`silence_timeout_s` is the time without an answer to a ping after which it is lost."""
        self.stream = stream
        self.received_turns = False
        """Whether the provider sent any message about a turn on this socket."""
        self.stuck = False
        """Whether the socket is dropped because the provider took audio and sent nothing."""
        self.opened_at = now
        self._answered = False  # whether any event was about audio
        self._context = context
        self._state = state
        self._tracker = state.tracker
        self._configs = state.configs
        self._lifecycle = state.lifecycle
        self._sender = sender
        self._ingest = ingest
        self._receiver = receiver
        self._publisher = publisher
        self._reports = reports
        self._watchdog = watchdog
        watchdog.restart()
        self._silence = silence
        silence.restart(stream.provider.max_silent_ms)
        self._speech = speech
        speech.restart()
        self._unanswered = unanswered
        unanswered.restart()
        self._silence_timeout_s = silence_timeout_s
        self._keepalive = Keepalive(now, silence_timeout_s)
        self._progress_interval_s = min(
            PROGRESS_INTERVAL_S, PROGRESS_SHARE * context.settings.max_lag_s
        )
        self._park_s = min(context.settings.park_s, PARK_SHARE * stream.provider.max_idle_s)
        self._next_check_at = 0.0
        self._flushing_since = 0.0  # or when the provider last transcribed more during a flush
        self._transcribed_ms = 0.0
        self._flush_rejected = False
        self._grace = anyio.CancelScope()  # has a deadline once a flush was rejected
        self._ending: TurnEnding | None = None  # while the open turn is ended by a command
        self._finished = False  # the end of the stream was requested

    def has_lasted(self, now: float) -> bool:
        """Whether the socket has lasted long enough to end an outage."""
        return now - self.opened_at > WORKS_AFTER_S

    @property
    def silent_since(self) -> float | None:
        """When the socket was last known to work, if it is dropped because it is silent."""
        return self._keepalive.silent_since

    def works(self, now: float, *, inside_turn: bool) -> bool:
        """Whether the provider works: inside a turn it has to send something about the audio."""
        return self._answered or (self.has_lasted(now) and not inside_turn)

    def ignores_turn(self, now: float) -> bool:
        """Whether the provider is stuck inside the open turn, as its speech shows."""
        unanswered = self._unanswered
        if self.stream.provider.max_silent_ms:
            return False  # it sends messages in silence too: no speech is needed
        sent_ms = self._sent_ms
        window_ms = unanswered.window_due(now, self._watchdog.message_at_ms, sent_ms)
        if window_ms:
            moment = self._sender.send_log.moment(now)
            audio = self._sender.sent_audio(moment, window_ms, unanswered.least_quiet)
            unanswered.observe(audio.silent, audio.quiet)
        return unanswered.is_stuck(self._tracker.state.turn)

    def leave_turn(self) -> None:
        """Drop the socket because the provider is stuck inside the open turn."""
        seconds = self._unanswered.unanswered_s
        self._unanswered.left(self._tracker.state.turn)
        self.stuck = True
        self.stream.socket.abort(f"no message for {seconds:g} s of speech inside a turn")

    def end_turn(self, now: float) -> None:
        """End the open turn after the audio sent so far; nothing is read until it is over.

        If the provider has a command for it, the socket stays. Otherwise only the end of the stream
        makes it transcribe the rest and end its turn, and the next audio needs another socket.
        """
        if not self._has_command:
            self.flush(now, "forced")
        elif self._ending is None:
            self._begin_ending(now, "forced")

    def flush(self, now: float, reason: TurnEndReason = "close") -> None:
        """End the stream, after the last audio for this socket; `reason` is that of a turn's end.

        If the end of the stream would not end the open turn, the worker ends it before.
        """
        self._lifecycle.process(Input.LAST_SENT)
        self._publisher.trace.flush_started()
        self._begin_ending(now, reason)
        if self.stream.provider.flush_ends_turn:
            self._ending = None
            self._finish()

    @property
    def _has_command(self) -> bool:
        """Whether a command ends the open turn at this provider's deployment."""
        provider = self.stream.provider
        return provider.forces_end and provider.name not in self._context.without_forced_end

    def _begin_ending(self, now: float, reason: TurnEndReason) -> None:
        self._receiver.flush_reason = reason
        self._flushing_since = now
        self._next_check_at = self._state.next_tick_at = 0.0
        if self.stream.provider.word_times:
            self._receiver.ends_at = self._sender.session_bytes
        self._ending = TurnEnding(self._sent_ms, with_command=self._has_command)

    def _finish(self) -> None:
        self._finished = True
        self.stream.finish()

    def _advance_ending(self, ending: TurnEnding, event: Event | None) -> None:
        """Do the next step of ending the open turn."""
        ended = isinstance(event, TurnEvent) and event.kind is ProviderInput.END
        transcribed_ms = (
            event.transcribed_ms if isinstance(event, TurnEvent | AudioTranscribed) else None
        )
        step = ending.advance(
            transcribed_ms,
            self._sent_ms,
            in_turn=self._tracker.provider_in_turn,
            answered=ended or isinstance(event, NoTurnToEnd),
        )
        if step is Step.COMMAND:
            self.stream.end_turn()
        elif step is Step.UNANSWERED:
            log.warning(
                "%s: the provider does not answer the end of the turn, which ends with its text",
                self._publisher.name,
            )
            self._ending = None
            if not self._lifecycle.flushing:
                self._lifecycle.process(Input.LAST_SENT)
                self._publisher.trace.flush_started()
            self._finish()
        elif step is Step.DONE:
            self._ending = None
            if self._lifecycle.flushing:
                self._finish()
            else:
                self._receiver.commit_all_sent(self._receiver.flush_reason)
                self._receiver.ends_at = None
                self._sender.stop_silence()
                self._ingest.on_turn_ended()

    @property
    def next_tick_at(self) -> float:
        """Time until which `tick` has nothing to check, unless something changes."""
        if self._receiver.holds_update or self._ending is not None:
            return 0.0
        return min(self._next_check_at, self._ingest.last_entry_at + CHECK_INTERVAL_S)

    def tick(self, now: float) -> None:
        """Check every deadline; called about ten times a second."""
        self._receiver.release_update(now)
        entries_arrive = now - self._ingest.last_entry_at < CHECK_INTERVAL_S
        if entries_arrive and self._ending is None and now < self._next_check_at:
            return  # the other checks can wait
        self._next_check_at = now + CHECK_INTERVAL_S
        self._check_socket(now)
        self._commit_progress(now)
        if now - self._ingest.last_entry_at > DROP_REPORT_DELAY_S:
            self._ingest.report_dropped()
        if self._lifecycle.flushing or self._ending is not None:
            if self._ending is not None:
                self._sender.send_silence(now)
            if now - self._flushing_since > FLUSH_TIMEOUT_S:
                self.stuck = self._receiver.inside_turn
                self._receiver.flush_failed()
                self.stream.socket.abort(f"not flushed within {FLUSH_TIMEOUT_S:g} s")
        elif self._receiver.inside_turn:
            # Also while entries arrive: they may hold no new audio.
            self._sender.send_filler(
                now, self._ingest.up_since, self._ingest.poll_schedule.last_polled_at
            )
            self._check_turn()
        elif (
            not entries_arrive
            and self._sender.is_drained
            and self._ingest.producer_idle_s(self.opened_at) > self._park_s
        ):
            self.flush(now)

    async def run(self) -> None:
        """Handle the provider's messages until it closes the socket after `close`.

        Raises `SttError` if the socket is lost, or if the provider rejects what was sent.
        """
        try:
            flushed = await self._receive()
        except SttError:
            self._receiver.publish_text()
            raise
        self._receiver.publish_text()
        self._receiver.resolve_pending_end(final=True)
        if not self._finished:
            raise SttTransientError(
                "the provider closed the socket before the worker ended the stream", status=1000
            )
        if flushed:
            self._receiver.commit_all_sent(self._receiver.flush_reason)
        else:
            self._receiver.flush_refused()

    async def _receive(self) -> bool:
        """Receive until the provider closes the socket; return whether the flush succeeded."""
        with self._grace:
            try:
                await self.stream.listen(self._on_event)
            except SttError:
                if not self._flush_rejected:
                    raise
            else:
                return True
        return False

    def _on_event(self, event: Event | None, received_at: float, waiting: int) -> None:
        """Handle an event, None if its message is unreadable.

        The socket calls this when it arrives, outside the session's task.
        """
        try:
            self._handle(event, received_at, waiting)
        except SttError:
            raise
        except Exception:
            # The state in memory may be wrong, and the session's task runs only later.
            self._publisher.abort(CRASHED)
            raise
        if self._flush_rejected:
            # `anyio.current_time` may need a task.
            self._grace.deadline = asyncio.get_running_loop().time() + FLUSH_ERROR_GRACE_S

    def _handle(self, event: Event | None, received_at: float, waiting: int) -> None:
        arrival = self._sender.send_log.moment(received_at)
        turn = event if isinstance(event, TurnEvent) else None
        begins = turn is not None and turn.kind is ProviderInput.START
        self._receiver.on_message(arrival, waiting, begins=begins)
        if turn is not None:
            self._receiver.on_turn_event(turn, arrival)
            self.received_turns = self._answered = True
            self._speech.on_turn_event()
        if isinstance(event, TurnEvent | AudioTranscribed) and event.transcribed_ms is not None:
            self._on_transcribed(event.transcribed_ms, received_at)
        if self._ending is not None:
            self._advance_ending(self._ending, event)
        match event:
            case None:
                return
            case UnknownMessage():
                self._context.stats.provider_unknown += 1
                return  # a stuck provider may send these forever
            case AudioTranscribed():
                self._answered = True
                self._receiver.on_transcribed(event.transcribed_ms)
            case ProviderError():
                self._on_error(event)
            case Warned():
                self._reports.provider_error(event.code, event.message, 0)
            case _:
                pass
        sent_ms = self._sent_ms
        self._silence.on_message(
            self._watchdog.silent_ms(sent_ms), sent_ms, inside_turn=self._receiver.inside_turn
        )
        self._watchdog.on_message(sent_ms)

    def _on_transcribed(self, transcribed_ms: float, now: float) -> None:
        """Record progress: as long as there is some, a flush has not failed."""
        transcribed_ms = min(transcribed_ms, self._sent_ms)
        if transcribed_ms > self._transcribed_ms:
            self._transcribed_ms = transcribed_ms
            self._flushing_since = max(self._flushing_since, now)

    def _on_error(self, error: ProviderError) -> None:
        """Handle an in-band error, after which the provider continues."""
        flushing = self._lifecycle.flushing
        if not flushing and self._sender.sent_fast_within(RATE_ERROR_WINDOW_S):
            self._sender.limit_to_real_time()
            raise SttTransientError(f"rejected while catching up: {error.message}", status=400)
        self._flush_rejected = flushing
        if self._sender.configured_within(RATE_ERROR_WINDOW_S):
            self._sender.resume_speed()  # the settings caused the error, not the pace
        self._reports.provider_error(error.code, error.message, error.status)

    @property
    def _sent_ms(self) -> float:
        """Duration of the audio sent on this socket, filler included, in milliseconds."""
        return self._sender.ms_of(self._sender.socket_bytes)

    def _check_socket(self, now: float) -> None:
        """Ping the provider, drop a dead socket, and commit silence that the provider received."""
        every_s = PING_INTERVAL_S if self._receiver.inside_turn else IDLE_PING_INTERVAL_S
        every_s = min(every_s, self._silence_timeout_s)
        socket, sent = self.stream.socket, self._sender.session_bytes
        received = self._keepalive.check(socket, now, sent, every_s)
        if self._silence.check(self._watchdog.silent_ms(self._sent_ms)):
            seconds = self._watchdog.silent_ms(self._sent_ms) / 1_000
            self.stuck = self._receiver.inside_turn
            socket.abort(f"the provider sent nothing for {seconds:.1f} s of audio")
        if received is None or self.stream.provider.word_times or self._receiver.inside_turn:
            return
        audio = self._sender.sent_audio(self._sender.send_log.moment(now), WINDOW_MS)
        if not self._speech.observe(audio.silent):
            self._receiver.commit_silence(received)
        elif self._speech.is_fault:
            seconds = WINDOW_MS * MAX_WINDOWS / 1_000
            self.stuck = True
            self._reports.provider_error(
                "stt_silent",
                f"the provider sent nothing for {seconds:g} s of speech; it is sent again",
                0,
            )
            socket.abort(f"no message for {seconds:g} s of speech")

    def _commit_progress(self, now: float) -> None:
        """Commit regularly how far audio was sent, while there are no events to commit."""
        self._ingest.note_sent(now)
        due = now - self._publisher.built_at >= self._progress_interval_s > 0
        if due and self._sender.sent_uncommitted_bytes:
            self._publisher.request_commit()

    def _check_turn(self) -> None:
        """Act on a stuck turn: replay it, and end it if a replay did not help."""
        if not self._watchdog.is_due(self._sent_ms):
            return
        timeout_ms = self._context.settings.turn_config.merged(
            self._configs.current
        ).turn_end_timeout_ms
        action = self._watchdog.check(self._tracker.state.turn, self._sent_ms, timeout_ms)
        # Whether this socket has not yet reached the text that consumers saw.
        behind = self._sender.session_bytes < self._tracker.last_growth
        if (
            action is WatchdogAction.NONE
            or not self.stream.socket.open
            or (action is WatchdogAction.END and behind)
        ):
            return
        log.warning("%s: the open turn is stuck, %s", self._publisher.name, action.value)
        if action is WatchdogAction.END:
            self._receiver.abandon_turn()
        # The socket is unusable even after a forced end: the provider is still inside its turn.
        self.stuck = True
        self.stream.socket.abort("the open turn is stuck")
