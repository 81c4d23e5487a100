"""One connection with the service: a session's audio out on one socket, its events in.

It ends when the service closes the socket after our `close`, all being said; or the socket is lost.
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

FLUSH_ERROR_GRACE_S = 2.0
"""Silence that ends a flush after an in-band refusal: it may be of the flush, or of settings that
were sent before that, and then all the rest comes."""

CHECK_INTERVAL_S = 0.4
"""Between looks at a socket while audio flows: before filler is due, and well within the time in
which the answer to a ping tells when the ping was heard."""

REMEMBER_EVERY_S = 5.0
REMEMBER_SHARE = 0.1
"""Longest interval between commits while audio is sent that no event covers, in seconds and as a
share of `TURNBUS_MAX_LAG_S`. A new owner takes what was sent since the last commit for late."""

DROP_REPORT_DELAY_S = 1.0
"""How long audio that is kept may take to follow audio that was dropped."""

WORKS_AFTER_S = 3.0
"""Time that a socket lasts before it ends an outage: some providers connect, and close at once."""

RATE_ERROR_WINDOW_S = 2.0
"""An in-band refusal that soon after audio was held back is taken for one of its pace."""


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
        """Whether `close` was sent: no more audio goes out."""
        self._context = context
        self._sender = parts.sender
        self._ingest = parts.ingest
        self._receiver = parts.receiver
        self._upkeep = parts.upkeep
        self._narrator = parts.narrator
        self._remember_s = min(REMEMBER_EVERY_S, REMEMBER_SHARE * context.timeouts.max_lag_s)
        self._reports = parts.reports
        self._over = False
        self._since = now
        self._next_check_at = 0.0
        self._flushing_since = 0.0
        self._flush_rejected = False

    @property
    def catching_up(self) -> bool:
        """Whether audio waits for the pacing to let it go."""
        return not (self._over or self.flushing or self._sender.empty)

    def works(self, now: float) -> bool:
        """Whether the socket has lasted long enough to be no part of an outage."""
        return not self._over and now - self._since > WORKS_AFTER_S

    @property
    def _producer_idle_s(self) -> float:
        return self._upkeep.producer_idle_s(max(self._ingest.last_new_entry_at, self._since))

    def drain(self, now: float) -> None:
        """Send what may be sent; ask for the rest of the turns once all was."""
        if self._over or self.flushing:
            return
        if self._sender.drain(now):
            self._context.backlog.add(self)
        elif self._ingest.end_reached or self._ingest.cut_short:
            self._ingest.report_dropped()
            self._flush(now)

    def tick(self, now: float) -> None:
        """Look at every deadline; called about ten times a second."""
        if not self._over:
            self._receiver.release_update(now)
        if now < self._next_check_at and now - self._ingest.last_entry_at < CHECK_INTERVAL_S:
            return  # audio flows, and what else there is has time
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
        """Commit now and then how far audio was sent, while no event does."""
        self._ingest.note_sent(now)
        publisher = self._narrator.publisher
        due = now - publisher.built_at >= self._remember_s > 0
        if due and self._sender.uncommitted_bytes:
            publisher.request_commit()

    def fail(self) -> None:
        """Commit nothing more: a fault of ours struck, and what is held may be wrong."""
        self._narrator.publisher.abort(INTERNAL_ERROR)

    async def run(self) -> None:
        """Publish what the service says until it closes after our `close`.

        Raises `SttError` if the socket is lost, or refuses what it was sent.
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
                "the service closed the socket without being asked", status=1000
            )
        if flushed:
            self._receiver.commit_all_sent("close")
        else:
            self._upkeep.flush_refused()

    async def _receive(self) -> bool:
        """Take messages until the provider closes; return whether it refused no flush."""
        with anyio.CancelScope() as patience:
            try:
                while (message := await self.stream.receive()) is not None:
                    self._on_message(message)
                    if self._flush_rejected:
                        patience.deadline = anyio.current_time() + FLUSH_ERROR_GRACE_S
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
                raise SttTransientError(f"refused while catching up: {message.message}", status=400)
            case cartesia.Error():
                self._flush_rejected = self.flushing
                if self._sender.configured_within(RATE_ERROR_WINDOW_S):
                    self._sender.resume_speed()  # it was the settings, and not the pace
                self._reports.provider_error(
                    message.error_code or "stt_error",
                    message.message or message.title or "the service gave no reason",
                    message.status_code or 0,
                )
            case cartesia.UnknownMessage():
                self._context.stats.provider_unknown += 1
                return  # a service that is stuck may send such for ever
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
        self._narrator.trace.flush_started()
        self.stream.send_close()
