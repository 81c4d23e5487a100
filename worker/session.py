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

from schemas import cartesia
from schemas.turns import EndReason as SessionEndReason
from worker.bus.commits import CRASHED
from worker.bus.gate import Seat
from worker.bus.intake import Ownership
from worker.bus.reader import Entries
from worker.core import ids
from worker.core.configs import Configs
from worker.core.faults import Backoff, is_idle_close
from worker.core.ledger import Ledger
from worker.core.pacing import Pacer
from worker.core.rhythm import Rhythm
from worker.core.turns import TurnTracker
from worker.dial import dial
from worker.errors import SttError, SttPermanent, SttTransient
from worker.hearing import Hearing
from worker.host import Host
from worker.inbox import Inbox
from worker.narrator import Narrator
from worker.seam import Seam
from worker.spans import SessionTrace
from worker.standing import Snapshot, Standing
from worker.stt.cartesia import Stream, StreamSettings
from worker.upkeep import Upkeep
from worker.uplink import Uplink

log = logging.getLogger(__name__)

FLUSH_DEADLINE_S = 10.0
FLUSH_ROUNDS = 3
"""Flushes without an answer after which the session ends without one."""

CALM_S = 0.4
"""Between looks at a socket while audio flows: before filler is due, and well within the time in
which the answer to a ping tells when the ping was heard."""

TELL_SHED_AFTER_S = 1.0
"""How long audio that is kept may take to follow audio that was dropped."""

PACE_REFUSAL_S = 2.0
"""An in-band refusal that soon after audio was held back is taken for one of its pace."""

OUTAGE_TOLD_AFTER_S = 3.0
"""How long a session may be without a socket before consumers are told."""

JITTER_MS = 250
"""By how much the service's lag differs from socket to socket."""


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
        self.phase = Phase.PARKED
        self.epoch = 0
        self.announced_again = False
        """Its entry was put back, for Redis had lost it."""
        self._host = host
        self._entry = entry
        self._ledger = Ledger(entry.encoding.width, snapshot.ledger)
        self._uplink = Uplink(
            entry.encoding,
            entry.sample_rate,
            self._ledger,
            Pacer(host.pace.replay_speed),
            host.stats,
        )
        self._tracker = TurnTracker(snapshot.turns, self._uplink.bytes_of(JITTER_MS))
        self._configs = Configs(snapshot.config)
        self._standing = Standing(
            snapshot,
            self._ledger,
            self._tracker,
            self._configs,
            self._uplink,
            host.usual_lag,
        )
        self._narrator = Narrator(
            host, ownership, seq, self._standing.place, self._standing.written
        )
        if self._tracker.open:
            self.trace.turn_started(snapshot.turns.turn, time.time(), taken_over=True)
        host.usual_lag.inherit(snapshot.lag_s)
        seam = Seam(entry, self._ledger, self._uplink, host.wakefulness, host.usual_lag)
        self._hearing = Hearing(self._tracker, seam, self._ledger, self._uplink, self._narrator)
        self._inbox = Inbox(
            host,
            self.audio_key,
            entry.session,
            self._ledger,
            self._configs,
            self._uplink,
            self._hearing,
            self._narrator,
        )
        now = time.monotonic()
        self.rhythm = Rhythm(now)
        """Of its audio stream; the reader's."""
        self._upkeep = Upkeep(
            host,
            self.name,
            self.lane,
            self.rhythm,
            self._configs,
            self._uplink,
            self._tracker,
            self._hearing,
            self._narrator,
        )
        self._backoff = Backoff()
        self._reached = self._ledger.committed_bytes  # as the socket before this one was opened
        self._flushes = 0  # without an answer
        self._epitaph: Epitaph | None = None
        self._seat = Seat.of(entry.lane, entry.session, ownership.fence)
        self._wake = anyio.Event()
        self._stream: Stream | None = None
        self._phase_since = now
        self._calm_until = 0.0
        self._outage_told = False
        self._unreadable = ""

    # -- what the reader asks and tells

    @property
    def cursor(self) -> str:
        """Entry id after which to read."""
        return self._inbox.cursor

    @property
    def wants_audio(self) -> bool:
        """Whether to read audio for this session now."""
        if (
            self.phase in (Phase.FLUSHING, Phase.OVER)
            or self._inbox.read_to_end
            or self._unreadable
        ):
            return False
        return self._uplink.has_room if self.phase is Phase.LIVE else not self._uplink.holds_audio

    @property
    def chunk_s(self) -> float:
        """How much sound the chunk held that was read last, in seconds."""
        return self._uplink.chunk_ms / 1000

    @property
    def catching_up(self) -> bool:
        """Whether audio waits for the pacing to let it go."""
        return self.phase is Phase.LIVE and not self._uplink.empty

    @property
    def trace(self) -> SessionTrace:
        """Its spans."""
        return self._narrator.trace

    @property
    def lag_s(self) -> float:
        """Age of the oldest audio that was read and waits to be sent, in seconds; 0 if none does.

        By our clock less Redis's.
        """
        if not self._uplink.holds_audio:
            return 0.0
        # What a live session holds is newer than that by less than the uplink has room for.
        oldest = self.cursor if self.phase is Phase.LIVE else self._ledger.oldest
        return max(0.0, time.time() - ids.milliseconds(oldest or self.cursor) / 1000)

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
    def refused(self) -> str | None:
        """Why our commits are refused: another worker owns the session. None while they are not."""
        return self._narrator.publisher.refused

    def feed(self, entries: Entries, now: float) -> None:
        """Take entries that follow the cursor, read just now."""
        if self.phase in (Phase.FLUSHING, Phase.OVER) or self.refused is not None:
            return  # read again, if it is wanted, once the flush is over, or by another owner
        self._inbox.take(entries, now, live=self.phase is Phase.LIVE)
        if self.phase is Phase.LIVE:
            self.drain(now)
        else:
            self._wake.set()

    def unreadable(self, error: ResponseError) -> None:
        """Learn that the audio key holds something that is no stream."""
        self._unreadable = str(error)
        self._wake.set()

    # -- what the clock brings

    def drain(self, now: float) -> None:
        """Send what may be sent; ask for the rest of the turns once all was."""
        stream = self._stream
        if stream is None or self.phase is not Phase.LIVE:
            return
        if self._uplink.drain(now):
            self._host.catch_up.add(self)
        elif self._inbox.read_to_end:
            self._inbox.tell_shed()
            self._flush(stream)

    def tick(self, now: float) -> None:
        """Look at every deadline; called about ten times a second."""
        if now < self._calm_until and now - self._inbox.fed_at < CALM_S:
            return  # audio flows, and what else there is has time
        match self.phase:
            case Phase.LIVE | Phase.FLUSHING if self._stream is not None:
                self._tick_socket(self._stream, now)
            case Phase.CONNECTING:
                late = now - self._phase_since > OUTAGE_TOLD_AFTER_S
                if late and not self._outage_told:
                    self._outage_told = True
                    self._narrator.error("stt_unavailable", "no connection to the STT service yet")
            case Phase.PARKED if now - self._inbox.news_at > self._host.pace.idle_s:
                self._wake.set()

    def _tick_socket(self, stream: Stream, now: float) -> None:
        self._calm_until = now + CALM_S
        self._upkeep.beat(stream, now)
        if now - self._inbox.fed_at > TELL_SHED_AFTER_S:
            self._inbox.tell_shed()
        if self.phase is Phase.FLUSHING:
            if now - self._phase_since > FLUSH_DEADLINE_S:
                self._give_up_flush(stream)
        elif self._hearing.inside_turn:
            self._upkeep.keep_turn_moving(stream, now)
        elif now - self._inbox.news_at > self._host.pace.park_s:
            self._flush(stream)

    def _give_up_flush(self, stream: Stream) -> None:
        """Flush again on a new socket; at last, end what the service will not."""
        self._flushes += 1
        if self._flushes >= FLUSH_ROUNDS:
            log.warning("%s: the service does not flush; given up", self.name)
            self._upkeep.give_up_turn()
        stream.socket.abort(f"not flushed within {FLUSH_DEADLINE_S:g} s")

    # -- its own task

    async def run(self) -> None:
        """Run until the session ended. Cancel to let go of it.

        Raises `CommitRefused` if another worker owns the session.
        """
        self._host.reader.add(self)
        try:
            while self.phase is not Phase.OVER:
                await self._step()
            await self._narrator.publisher.drained()
            self._bury()
            await self._host.gate.leave(self._seat)
        finally:
            self.phase = Phase.OVER
            self._host.reader.remove(self)

    def prove(self) -> None:
        """Commit, events or not, so that it shows whether the session is still ours."""
        self._narrator.publisher.touch()

    def crashed(self) -> None:
        """Commit nothing more: a fault of ours struck, and what is held may be wrong."""
        self._narrator.publisher.stop(CRASHED)

    async def settle(self) -> None:
        """Wait until everything published so far is committed; raises `CommitRefused`."""
        await self._narrator.publisher.drained()

    async def _step(self) -> None:
        """Wait for work; do one socket's worth of it."""
        self._enter(Phase.PARKED)
        while not self._has_work:
            await self._wake.wait()
            self._wake = anyio.Event()
            if time.monotonic() - self._inbox.news_at > self._host.pace.idle_s:
                self._hearing.break_off()
                self._finish("idle")
                return
        if self._unreadable:
            self._fail("audio_unreadable", f"audio key: {self._unreadable}", status=0)
            return
        if self._inbox.read_to_end and not self._uplink.holds_audio and not self._tracker.open:
            self._finish("end")
            return
        stream = await self._connect()
        if stream is None:
            return
        lost: SttError | None = None
        try:
            async with stream:
                await self._converse(stream)
        except SttError as error:
            lost = error
        finally:
            self._stream = None
            self._set_back()
        self.trace.flush_ended(lost)
        if lost is not None:
            await self._lose(lost)

    @property
    def _has_work(self) -> bool:
        return bool(self._unreadable) or self._uplink.holds_audio or self._inbox.read_to_end

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._phase_since = time.monotonic()
        self._calm_until = 0.0
        self.rhythm.hurry()
        self._host.reader.wake()

    def _set_back(self) -> None:
        """Read again, from the committed position on, whatever a new socket must hear."""
        self._uplink.detach()
        self._hearing.forget()
        self._inbox.set_back()
        self.epoch += 1

    async def _connect(self) -> Stream | None:
        """Connect, however long it takes; None if the service will never have this session."""
        self._enter(Phase.CONNECTING)
        settings = StreamSettings(
            model=self._entry.model or self._host.model,
            encoding=self._entry.encoding,
            sample_rate=self._entry.sample_rate,
            keyterms=self._entry.keyterms,
            turn=self._host.turn.merged(self._configs.current),
        )
        wanted = time.monotonic()
        if await self._host.gate.enter(self._seat):
            self._host.stats.gate_wait.observe(time.monotonic() - wanted)
        try:
            stream = await dial(
                self._host, self.name, settings, self._narrator.trace, self._backoff
            )
        except SttPermanent as error:
            self._fail(error.code or "stt_refused", str(error), status=error.status)
            return None
        self._connected(stream)
        return stream

    def _connected(self, stream: Stream) -> None:
        now = time.monotonic()
        if self._inbox.is_late:
            self._set_back()  # and judge all of it by its age
        self._standing.connected(stream.request_id)
        log.info("%s: connected, request %s", self.name, stream.request_id)
        self._outage_told = False
        if self._ledger.committed_bytes > self._reached:
            self._reached = self._ledger.committed_bytes
            self._flushes = 0
        self._hearing.socket_opened(now)
        self._uplink.attach(stream, now)
        self._upkeep.connected(now)
        self._stream = stream
        self._enter(Phase.LIVE)
        self.drain(now)

    async def _converse(self, stream: Stream) -> None:
        """Publish what the service says until it closes after our `close`."""
        while (message := await stream.receive()) is not None:
            arrival = self._uplink.log.moment(stream.socket.received_at)
            self._hearing.heard_anything(arrival, stream.socket.waiting)
            match message:
                case cartesia.Error() if self.phase is Phase.FLUSHING:
                    break  # nothing more will come of what was sent
                case cartesia.Error() if self._uplink.paced_within(PACE_REFUSAL_S):
                    self._uplink.slow_down()
                    raise SttTransient(f"refused while catching up: {message.message}", status=400)
                case cartesia.Error():
                    self._narrator.error(
                        message.error_code or "stt_error",
                        message.message or message.title,
                        status=message.status_code or 0,
                    )
                case cartesia.Unknown():
                    self._host.stats.provider_unknown += 1
                case cartesia.Connected():
                    pass
                case _:
                    self._hearing.take(message, arrival)
            self._upkeep.said()
        self._hearing.release_end(final=True)
        if self.phase is not Phase.FLUSHING:
            raise SttTransient("the service closed the socket without being asked", status=1000)
        self._hearing.conclude("close")
        if self._inbox.read_to_end:
            self._finish("end")
        else:
            await self._host.gate.leave(self._seat)

    async def _lose(self, error: SttError) -> None:
        if is_idle_close(error.status, str(error)):
            self._host.stats.sockets_lost["idle"] += 1
            await self._host.gate.leave(self._seat)
            return
        self._host.stats.sockets_lost[error.fault_class] += 1
        if isinstance(error, SttPermanent):
            self._fail("stt_refused", str(error), status=error.status)
            return
        log.info("%s: socket lost: %s", self.name, error)
        if self._ledger.committed_bytes > self._reached:
            self._backoff.reset()
        self._enter(Phase.CONNECTING)
        await anyio.sleep(self._backoff.next_s())

    def _flush(self, stream: Stream) -> None:
        self._enter(Phase.FLUSHING)
        self._hearing.flushing = True
        self.trace.flush_started()
        self.epoch += 1  # a read may be under way
        stream.send_close()

    # -- the end

    def _finish(self, reason: SessionEndReason) -> None:
        self._narrator.end(reason, self._tracker.state.turn)
        self.phase = Phase.OVER

    def _fail(self, code: str, message: str, *, status: int) -> None:
        """End the session for a fault that no retry can cure."""
        log.error("%s: ended: %s", self.name, message)
        self._narrator.tell(self._tracker.conclude("close"))
        self._narrator.error(code, message, status=status, fatal=True)
        self._finish("error")
        self._epitaph = Epitaph(code, message)

    def _bury(self) -> None:
        """Put a session that failed on the dead stream, now that its end is ours for certain."""
        if self._epitaph is not None:
            fence, keys = self.ownership.fence, self._host.keys
            self._host.bury(fence.entry, keys.sessions, self._entry.session, *self._epitaph, {})
