"""One conversation with the service: a session's audio out on one socket, its events in.

It ends when the service closes the socket after our `close`, all being said; or the socket is lost.
"""

import anyio

from schemas import cartesia
from worker.bus.commits import CRASHED
from worker.errors import SttError, SttTransient
from worker.host import Host
from worker.sessions.parts import Parts
from worker.stt.cartesia import Stream
from worker.telemetry.logs import SessionName

FLUSH_DEADLINE_S = 10.0

REFUSED_FLUSH_S = 2.0
"""Silence that ends a flush after an in-band refusal: it may be of the flush, or of settings that
were sent before that, and then all the rest comes."""

CALM_S = 0.4
"""Between looks at a socket while audio flows: before filler is due, and well within the time in
which the answer to a ping tells when the ping was heard."""

REMEMBER_EVERY_S = 5.0
REMEMBER_SHARE = 0.1
"""Longest interval between commits while audio is sent that no event covers, in seconds and as a
share of `TURNBUS_MAX_LAG_S`. A new owner takes what was sent since the last commit for late."""

TELL_SHED_AFTER_S = 1.0
"""How long audio that is kept may take to follow audio that was dropped."""

WORKS_AFTER_S = 3.0
"""Time that a socket lasts before it ends an outage: some providers connect, and close at once."""

PACE_REFUSAL_S = 2.0
"""An in-band refusal that soon after audio was held back is taken for one of its pace."""


class Conversation:
    """Runs one live socket of a session."""

    def __init__(
        self, host: Host, name: SessionName, parts: Parts, stream: Stream, now: float
    ) -> None:
        self.name = name
        self.stream = stream
        self.flushing = False
        """Whether `close` was sent: no more audio goes out."""
        self._host = host
        self._uplink = parts.uplink
        self._inbox = parts.inbox
        self._hearing = parts.hearing
        self._upkeep = parts.upkeep
        self._narrator = parts.narrator
        self._remember_s = min(REMEMBER_EVERY_S, REMEMBER_SHARE * host.pace.max_lag_s)
        self._reports = parts.reports
        self._over = False
        self._since = now
        self._calm_until = 0.0
        self._flushing_since = 0.0
        self._flush_refused = False

    @property
    def catching_up(self) -> bool:
        """Whether audio waits for the pacing to let it go."""
        return not (self._over or self.flushing or self._uplink.empty)

    def works(self, now: float) -> bool:
        """Whether the socket has lasted long enough to be no part of an outage."""
        return not self._over and now - self._since > WORKS_AFTER_S

    @property
    def _silent_s(self) -> float:
        return self._upkeep.silent_s(max(self._inbox.news_at, self._since))

    def drain(self, now: float) -> None:
        """Send what may be sent; ask for the rest of the turns once all was."""
        if self._over or self.flushing:
            return
        if self._uplink.drain(now):
            self._host.catch_up.add(self)
        elif self._inbox.read_to_end or self._inbox.cut_short:
            self._inbox.tell_shed()
            self._flush(now)

    def tick(self, now: float) -> None:
        """Look at every deadline; called about ten times a second."""
        if not self._over:
            self._hearing.release_update(now)
        if now < self._calm_until and now - self._inbox.fed_at < CALM_S:
            return  # audio flows, and what else there is has time
        if self._over:
            return
        self._calm_until = now + CALM_S
        self._upkeep.beat(self.stream, now)
        self._remember(now)
        if now - self._inbox.fed_at > TELL_SHED_AFTER_S:
            self._inbox.tell_shed()
        if self.flushing:
            if now - self._flushing_since > FLUSH_DEADLINE_S:
                self._upkeep.flush_failed()
                self.stream.socket.abort(f"not flushed within {FLUSH_DEADLINE_S:g} s")
        elif self._hearing.inside_turn:
            self._upkeep.keep_turn_moving(self.stream, now)
        elif self._uplink.empty and self._silent_s > self._host.pace.park_s:
            self._flush(now)

    def _remember(self, now: float) -> None:
        """Commit now and then how far audio was sent, while no event does."""
        self._inbox.note_sent(now)
        publisher = self._narrator.publisher
        due = now - publisher.built_at >= self._remember_s > 0
        if due and self._uplink.unsettled:
            publisher.touch()

    def crashed(self) -> None:
        """Commit nothing more: a fault of ours struck, and what is held may be wrong."""
        self._narrator.publisher.stop(CRASHED)

    async def run(self) -> None:
        """Publish what the service says until it closes after our `close`.

        Raises `SttError` if the socket is lost, or refuses what it was sent.
        """
        try:
            flushed = await self._listen()
        except SttError:
            self._hearing.publish_text()
            raise
        finally:
            self._over = True
        self._hearing.publish_text()
        self._hearing.release_end(final=True)
        if not self.flushing:
            raise SttTransient("the service closed the socket without being asked", status=1000)
        if flushed:
            self._hearing.conclude("close")
        else:
            self._upkeep.flush_refused()

    async def _listen(self) -> bool:
        """Take messages until the provider closes; return whether it refused no flush."""
        with anyio.CancelScope() as patience:
            try:
                while (message := await self.stream.receive()) is not None:
                    self._take(message)
                    if self._flush_refused:
                        patience.deadline = anyio.current_time() + REFUSED_FLUSH_S
            except SttError:
                if not self._flush_refused:
                    raise
            else:
                return True
        return False

    def _take(self, message: cartesia.ServerMessage) -> None:
        arrival = self._uplink.log.moment(self.stream.socket.received_at)
        begins = isinstance(message, cartesia.TurnStart)
        self._hearing.heard_anything(arrival, self.stream.socket.waiting, begins=begins)
        match message:
            case cartesia.Error() if not self.flushing and self._uplink.hastened_within(
                PACE_REFUSAL_S
            ):
                self._uplink.slow_down()
                raise SttTransient(f"refused while catching up: {message.message}", status=400)
            case cartesia.Error():
                self._flush_refused = self.flushing
                if self._uplink.configured_within(PACE_REFUSAL_S):
                    self._uplink.hasten()  # it was the settings, and not the pace
                self._reports.provider_error(
                    message.error_code or "stt_error",
                    message.message or message.title or "the service gave no reason",
                    message.status_code or 0,
                )
            case cartesia.Unknown():
                self._host.stats.provider_unknown += 1
                return  # a service that is stuck may send such for ever
            case cartesia.Connected():
                pass
            case _:
                self._hearing.take(message, arrival)
                self._upkeep.said(about_turn=True)
                return
        self._upkeep.said(about_turn=False)

    def _flush(self, now: float) -> None:
        self.flushing = self._hearing.flushing = True
        self._flushing_since = now
        self._calm_until = 0.0
        self._narrator.trace.flush_started()
        self.stream.send_close()
