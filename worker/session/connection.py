"""One connection to the provider: sends a session's audio on one socket and receives its events.

The connection ends when the provider closes the socket after the worker's `close`, or when the
socket is lost.
"""

import anyio

from schemas import cartesia
from worker.bus.committer import INTERNAL_ERROR
from worker.context import WorkerContext
from worker.errors import SttError, SttTransientError
from worker.session.parts import Parts
from worker.stt.cartesia import TurnsStream
from worker.telemetry.logs import SessionName

FLUSH_TIMEOUT_S = 10.0
"""Timeout for the provider to close the socket after `close`."""

FLUSH_ERROR_GRACE_S = 2.0
"""Timeout for further messages after an in-band error during a flush. If the error is about
settings sent before, and not about the flush, the remaining transcripts still arrive."""

CHECK_INTERVAL_S = 0.4
"""Interval between checks of a socket while audio flows. It is shorter than the filler delay, and
well below the delay up to which a pong proves when the provider received the ping."""

REMEMBER_EVERY_S = 5.0
REMEMBER_SHARE = 0.1
"""Maximum interval between commits while no event covers the audio sent, in seconds and as a share
of `TURNBUS_MAX_LAG_S`. A new owner counts audio sent since the last commit as late."""

DROP_REPORT_DELAY_S = 1.0
"""Delay before dropped audio is reported if no kept audio follows it."""

WORKS_AFTER_S = 3.0
"""Minimum lifetime of a socket that ends an outage: some providers connect and close at once."""

RATE_ERROR_WINDOW_S = 2.0
"""Maximum time after pacing held audio back in which an in-band error is attributed to the pace."""


class LiveConnection:
    """Runs one live socket of a session."""

    def __init__(
        self,
        context: WorkerContext,
        name: SessionName,
        parts: Parts,
        stream: TurnsStream,
        now: float,
    ) -> None:
        self.name = name
        self.stream = stream
        self.flushing = False
        """Whether `close` was sent; no audio is sent after it."""
        self._context = context
        self._sender = parts.sender
        self._ingest = parts.ingest
        self._receiver = parts.receiver
        self._upkeep = parts.upkeep
        self._publisher = parts.publisher
        self._remember_s = min(REMEMBER_EVERY_S, REMEMBER_SHARE * context.timeouts.max_lag_s)
        self._reports = parts.reports
        self._over = False
        self._since = now
        self._next_check_at = 0.0
        self._flushing_since = 0.0
        self._flush_rejected = False

    @property
    def catching_up(self) -> bool:
        """Whether audio waits because of pacing."""
        return not (self._over or self.flushing or self._sender.empty)

    def works(self, now: float) -> bool:
        """Whether the socket has lasted long enough to end an outage."""
        return not self._over and now - self._since > WORKS_AFTER_S

    @property
    def _producer_idle_s(self) -> float:
        return self._upkeep.producer_idle_s(max(self._ingest.last_new_entry_at, self._since))

    def drain(self, now: float) -> None:
        """Send what pacing allows; send `close` after the last audio."""
        if self._over or self.flushing:
            return
        if self._sender.drain(now):
            self._context.backlog.add(self)
        elif self._ingest.end_reached or self._ingest.cut_short:
            self._ingest.report_dropped()
            self._flush(now)

    def tick(self, now: float) -> None:
        """Check every deadline; called about ten times a second."""
        if not self._over:
            self._receiver.release_update(now)
        if now < self._next_check_at and now - self._ingest.last_entry_at < CHECK_INTERVAL_S:
            return  # audio flows, and the other checks can wait
        if self._over:
            return
        self._next_check_at = now + CHECK_INTERVAL_S
        self._upkeep.check_connection(self.stream, now)
        self._remember(now)
        if now - self._ingest.last_entry_at > DROP_REPORT_DELAY_S:
            self._ingest.report_dropped()
        if self.flushing:
            if now - self._flushing_since > FLUSH_TIMEOUT_S:
                self._upkeep.on_flush_failed()
                self.stream.socket.abort(f"not flushed within {FLUSH_TIMEOUT_S:g} s")
        elif self._receiver.inside_turn:
            self._upkeep.drive_open_turn(self.stream, now)
        elif self._sender.empty and self._producer_idle_s > self._context.timeouts.park_s:
            self._flush(now)

    def _remember(self, now: float) -> None:
        """Commit regularly how far audio was sent, while there are no events to commit."""
        self._ingest.note_sent(now)
        publisher = self._publisher
        due = now - publisher.built_at >= self._remember_s > 0
        if due and self._sender.uncommitted_bytes:
            publisher.request_commit()

    def fail(self) -> None:
        """Stop committing after an internal error: the state in memory may be wrong."""
        self._publisher.abort(INTERNAL_ERROR)

    async def run(self) -> None:
        """Handle the provider's messages until it closes the socket after `close`.

        Raises `SttError` if the socket is lost, or if the provider rejects what was sent.
        """
        try:
            flushed = await self._receive()
        except SttError:
            self._receiver.publish_text()
            raise
        finally:
            self._over = True
        self._receiver.publish_text()
        self._receiver.resolve_pending_end(final=True)
        if not self.flushing:
            raise SttTransientError(
                "the provider closed the socket before `close` was sent", status=1000
            )
        if flushed:
            self._receiver.commit_all_sent("close")
        else:
            self._upkeep.flush_refused()

    async def _receive(self) -> bool:
        """Receive until the provider closes the socket; return whether the flush succeeded."""
        with anyio.CancelScope() as grace:
            try:
                while (message := await self.stream.receive()) is not None:
                    self._on_message(message)
                    if self._flush_rejected:
                        grace.deadline = anyio.current_time() + FLUSH_ERROR_GRACE_S
            except SttError:
                if not self._flush_rejected:
                    raise
            else:
                return True
        return False

    def _on_message(self, message: cartesia.ServerMessage) -> None:
        arrival = self._sender.send_log.moment(self.stream.socket.received_at)
        begins = isinstance(message, cartesia.TurnStart)
        self._receiver.on_message(arrival, self.stream.socket.waiting, begins=begins)
        match message:
            case cartesia.Error() if not self.flushing and self._sender.sent_fast_within(
                RATE_ERROR_WINDOW_S
            ):
                self._sender.limit_to_real_time()
                raise SttTransientError(
                    f"rejected while catching up: {message.message}", status=400
                )
            case cartesia.Error():
                self._flush_rejected = self.flushing
                if self._sender.configured_within(RATE_ERROR_WINDOW_S):
                    self._sender.resume_speed()  # the settings caused the error, not the pace
                self._reports.provider_error(
                    message.error_code or "stt_error",
                    message.message or message.title or "the provider gave no reason",
                    message.status_code or 0,
                )
            case cartesia.UnknownMessage():
                self._context.stats.provider_unknown += 1
                return  # a stuck provider may send these forever
            case cartesia.Connected():
                pass
            case _:
                self._receiver.on_turn_message(message, arrival)
                self._upkeep.on_provider_message(about_turn=True)
                return
        self._upkeep.on_provider_message(about_turn=False)

    def _flush(self, now: float) -> None:
        self.flushing = self._receiver.flushing = True
        self._flushing_since = now
        self._next_check_at = 0.0
        self._publisher.trace.flush_started()
        self.stream.send_close()
