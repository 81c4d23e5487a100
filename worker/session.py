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

import anyio
import msgspec
from redis.exceptions import ResponseError

from schemas import cartesia
from schemas.audio import AudioEntry, Fields, TurnConfig, decode_audio
from schemas.faults import EntryFault
from schemas.keys import Keys
from schemas.turns import EndReason as SessionEndReason
from worker.bus.intake import Ownership
from worker.bus.reader import Entries
from worker.core import ids
from worker.core.configs import Configs
from worker.core.faults import Backoff, is_idle_close
from worker.core.ledger import Ledger, LedgerState
from worker.core.pacing import Pacer
from worker.core.turns import Draft, EndReason, Input, TurnState, TurnTracker
from worker.core.watchdog import Bark, Watchdog
from worker.dial import dial
from worker.errors import SttError, SttPermanent, SttTransient
from worker.host import Host
from worker.narrator import Narrator, Place
from worker.publisher import Written
from worker.pulse import Pulse
from worker.seam import Seam
from worker.shedding import Shedding
from worker.stt.cartesia import Stream, StreamSettings
from worker.uplink import Moment, Uplink

log = logging.getLogger(__name__)

FLUSH_DEADLINE_S = 10.0
FLUSH_ROUNDS = 3
"""Flushes without an answer after which the session ends without one."""

TELL_SHED_AFTER_S = 1.0
"""How long audio that is kept may take to follow audio that was dropped."""

PACE_REFUSAL_S = 2.0
"""An in-band refusal that soon after audio was held back is taken for one of its pace."""
OUTAGE_TOLD_AFTER_S = 3.0
HEARD_MARGIN_MS = 1_500
"""Audio before an answered ping that may still belong to a turn whose start is on its way: the
service's lag and the onset it needs."""

_INPUTS: dict[type, Input] = {
    cartesia.TurnUpdate: Input.UPDATE,
    cartesia.TurnEagerEnd: Input.EAGER_END,
    cartesia.TurnResume: Input.RESUME,
}


class Phase(Enum):
    """Where a session stands with its socket."""

    PARKED = "parked"
    CONNECTING = "connecting"
    LIVE = "live"
    FLUSHING = "flushing"
    OVER = "over"


class Snapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that the next owner must know."""

    ledger: LedgerState = LedgerState()
    turns: TurnState = TurnState()
    config: TurnConfig = TurnConfig()
    connection: int = 0
    request_id: str = ""


class Session:
    """Runs one owned session."""

    def __init__(self, host: Host, ownership: Ownership, seq: int, snapshot: Snapshot) -> None:
        entry = ownership.session
        self.ownership = ownership
        self.lane = entry.lane
        self.audio_key = host.keys.audio(entry.lane, entry.session)
        self.phase = Phase.PARKED
        self.epoch = 0
        self.announced_again = False
        """Its entry was put back, for Redis had lost it."""
        self._host = host
        self._entry = entry
        self._ledger = Ledger(entry.encoding.width, snapshot.ledger)
        self.cursor = self._ledger.read_after
        self._tracker = TurnTracker(snapshot.turns)
        self._uplink = Uplink(
            entry.encoding,
            entry.sample_rate,
            self._ledger,
            Pacer(host.pace.replay_speed),
            host.stats,
        )
        self._seam = Seam(
            host.redis,
            host.health,
            self.audio_key,
            entry,
            self._ledger,
            self._uplink,
            host.wakefulness,
        )
        self._watchdog = Watchdog()
        self._flushes = 0
        self._epitaph: tuple[str, str] | None = None
        self._held_end: tuple[str, int] | None = None
        self._shedding = Shedding(host.pace.max_lag_s, self._ledger, self._uplink)
        self._gate_member = Keys.gate_member(entry.lane, entry.session)
        self._configs = Configs(snapshot.config)
        self._connection = snapshot.connection
        self._request_id = snapshot.request_id
        self._narrator = Narrator(host, ownership, seq, self._place, self._written)
        self._backoff = Backoff()
        self._wake = anyio.Event()
        self._stream: Stream | None = None
        now = time.monotonic()
        self._last_audio = now
        self._newest = ids.START  # of all entries ever read; a replay is no news
        self._fed_at = now
        self._phase_since = now
        self._outage_told = False
        self._pulse = Pulse(now)
        self._unreadable = ""

    # -- what the reader asks and tells

    @property
    def wants_audio(self) -> bool:
        """Whether to read audio for this session now."""
        if self.phase in (Phase.FLUSHING, Phase.OVER) or self._read_to_end or self._unreadable:
            return False
        return self._uplink.has_room if self.phase is Phase.LIVE else not self._uplink.holds_audio

    @property
    def catching_up(self) -> bool:
        """Whether audio waits for the pacing to let it go."""
        return self.phase is Phase.LIVE and not self._uplink.empty

    @property
    def between_turns(self) -> bool:
        """Whether giving the session away now interrupts nobody."""
        return not self._tracker.open and self.phase not in (Phase.FLUSHING, Phase.OVER)

    @property
    def refused(self) -> str | None:
        """Why our commits are refused: another worker owns the session. None while they are not."""
        return self._narrator.publisher.refused

    def feed(self, entries: Entries, now: float) -> None:
        """Take entries that follow the cursor."""
        if self.phase in (Phase.FLUSHING, Phase.OVER):
            return  # read again, if it is wanted, once the flush is over
        for raw_id, fields in entries:
            entry_id = raw_id.decode()
            self.cursor = entry_id
            try:
                self._take(entry_id, decode_audio(fields))
            except EntryFault as fault:
                self._refuse(entry_id, fields, fault)
        self._fed_at = now
        if ids.order(self.cursor) > ids.order(self._newest):
            self._newest = self.cursor
            self._last_audio = now
        if self.phase is Phase.LIVE:
            self.drain(now)
        else:
            self._wake.set()

    def unreadable(self, error: ResponseError) -> None:
        """Learn that the audio key holds something that is no stream."""
        self._unreadable = str(error)
        self._wake.set()

    def _take(self, entry_id: str, entry: AudioEntry) -> None:
        if entry.config is not None:
            self._configs.accept(entry_id, entry.config)
        admitted = self._ledger.admit(entry_id, entry)
        if admitted.missing and self._ledger.announce(entry_id):
            chunk_ms = self._uplink.ms_of(len(entry.audio))
            self._narrator.gap(int(admitted.missing * chunk_ms), "producer")
        if entry.config is not None:
            self._uplink.take_config(entry.config)
        if admitted.audio and not self._shed(entry_id, admitted.audio):
            self._host.stats.chunks += 1
            live = self.phase is Phase.LIVE and self._uplink.empty
            self._uplink.take(admitted.audio)
            if live:
                lag = time.time() - ids.milliseconds(entry_id) / 1000
                self._host.stats.chunk_lag.observe(max(0.0, lag))

    def _shed(self, entry_id: str, audio: bytes) -> bool:
        """Drop audio that comes too late, or say how much was dropped before this."""
        if self.phase is Phase.LIVE and self._shedding.drops(entry_id, audio):
            return True
        self._tell_shed(self._ledger.taken - len(audio))
        return False

    def _tell_shed(self, position: int) -> None:
        missing_ms = self._shedding.settle(position)
        if missing_ms:
            self._narrator.tell(self._tracker.conclude("watchdog"))
            self._narrator.gap(int(missing_ms), "backlog")

    @property
    def _read_to_end(self) -> bool:
        end = self._ledger.end
        return end is not None and ids.order(self.cursor) >= ids.order(end)

    # -- what the clock brings

    def drain(self, now: float) -> None:
        """Send what may be sent; ask for the rest of the turns once all was."""
        stream = self._stream
        if stream is None or self.phase is not Phase.LIVE:
            return
        if not self._uplink.drain(now) and self._read_to_end:
            self._tell_shed(self._ledger.taken)
            self._flush(stream)

    def tick(self, now: float) -> None:
        """Look at every deadline; called about ten times a second."""
        match self.phase:
            case Phase.LIVE | Phase.FLUSHING if self._stream is not None:
                self._tick_socket(self._stream, now)
            case Phase.CONNECTING:
                late = now - self._phase_since > OUTAGE_TOLD_AFTER_S
                if late and not self._outage_told:
                    self._outage_told = True
                    self._narrator.error("stt_unavailable", "no connection to the STT service yet")
            case Phase.PARKED if now - self._last_audio > self._host.pace.idle_s:
                self._wake.set()

    def _tick_socket(self, stream: Stream, now: float) -> None:
        heard = self._pulse.beat(stream.socket, now, self._uplink.fed)
        if heard is not None:
            self._settle_silence(heard)
        if now - self._fed_at > TELL_SHED_AFTER_S:
            self._tell_shed(self._ledger.taken)
        if self.phase is Phase.FLUSHING:
            if now - self._phase_since > FLUSH_DEADLINE_S:
                self._give_up_flush(stream)
        elif self._tracker.open or self._tracker.heard:
            self._keep_turn_moving(stream, now)
        elif now - self._last_audio > self._host.pace.park_s:
            self._flush(stream)

    def _give_up_flush(self, stream: Stream) -> None:
        """Flush again on a new socket; at last, end what the service will not."""
        self._flushes += 1
        if self._flushes >= FLUSH_ROUNDS:
            log.warning("%s: the service does not flush; given up", self._entry.session)
            if self._tracker.open:
                unheard = self._uplink.fed - self._tracker.grown_at
                self._narrator.gap(int(self._uplink.ms_of(max(0, unheard))), "watchdog")
            self._conclude("watchdog")
        stream.socket.abort(f"not flushed within {FLUSH_DEADLINE_S:g} s")

    def _keep_turn_moving(self, stream: Stream, now: float) -> None:
        """Fill in for a producer that stopped; see to a service that is stuck."""
        # An outage of Redis is no pause of the producer's.
        self._uplink.fill(now, self._host.health.since, self._host.reader.polled_at)
        timeout_ms = self._host.turn.merged(self._configs.current).turn_end_timeout_ms
        sent_ms = self._uplink.ms_of(self._uplink.sent)
        bark = self._watchdog.look(self._tracker.state.turn, sent_ms, timeout_ms)
        behind = self._uplink.fed < self._tracker.grown_at  # of what consumers saw of it
        if bark is Bark.NO or not stream.socket.open or (bark is Bark.END and behind):
            return
        log.warning("%s: the open turn is stuck; %s", self._entry.session, bark.value)
        if bark is Bark.END:
            unheard = self._uplink.fed - self._tracker.grown_at
            self._conclude("watchdog")
            self._narrator.gap(int(self._uplink.ms_of(unheard)), "watchdog")
        # Not even after an end of ours: the service is still inside its turn.
        stream.socket.abort("the open turn is stuck")

    def _settle_silence(self, heard: int) -> None:
        """Commit audio between turns that the service has certainly heard and found empty."""
        if self._tracker.open or self._tracker.heard:
            return
        if self._ledger.commit_to(heard - self._uplink.bytes_of(HEARD_MARGIN_MS)):
            self._uplink.committed()
            self._narrator.publisher.touch()

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
            await self._host.gate.leave(self._gate_member)
        finally:
            self.phase = Phase.OVER
            self._host.reader.remove(self)

    def prove(self) -> None:
        """Commit, events or not, so that it shows whether the session is still ours."""
        self._narrator.publisher.touch()

    async def settle(self) -> None:
        """Wait until everything published so far is committed; raises `CommitRefused`."""
        await self._narrator.publisher.drained()

    async def _step(self) -> None:
        """Wait for work; do one socket's worth of it."""
        self._enter(Phase.PARKED)
        while not self._has_work:
            await self._wake.wait()
            self._wake = anyio.Event()
            if time.monotonic() - self._last_audio > self._host.pace.idle_s:
                self._finish("idle")
                return
        if self._unreadable:
            self._fail("audio_unreadable", f"audio key: {self._unreadable}", status=0)
            return
        if self._read_to_end and not self._uplink.holds_audio and not self._tracker.open:
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
        if lost is not None:
            await self._lose(lost)

    @property
    def _has_work(self) -> bool:
        return bool(self._unreadable) or self._uplink.holds_audio or self._read_to_end

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._phase_since = time.monotonic()
        self._host.reader.wake()

    def _set_back(self) -> None:
        """Read again, from the committed position on, whatever a new socket must hear."""
        self._uplink.detach()
        self._shedding.forget()
        self._configs.rewind()
        self._held_end = None
        self.cursor = self._ledger.read_after
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
        await self._host.gate.enter(self._gate_member)
        try:
            stream = await dial(
                self._host, self._entry.session, settings, self._narrator.trace, self._backoff
            )
        except SttPermanent as error:
            self._fail(error.code or "stt_refused", str(error), status=error.status)
            return None
        self._connected(stream)
        return stream

    def _connected(self, stream: Stream) -> None:
        now = time.monotonic()
        if self._shedding.is_late(self._ledger.oldest):
            self._set_back()  # and judge all of it by its age
        self._connection += 1
        self._request_id = stream.request_id
        self._outage_told = False
        self._pulse = Pulse(now)
        self._tracker.socket_opened()
        self._uplink.attach(stream, now)
        self._seam.reset(now)
        self._watchdog.restart()
        self._stream = stream
        self._enter(Phase.LIVE)
        self.drain(now)

    async def _converse(self, stream: Stream) -> None:
        """Publish what the service says until it closes after our `close`."""
        while (message := await stream.receive()) is not None:
            self._release_end(final=False)
            # It may have waited for us, and we for Redis, while more was sent.
            arrival = self._uplink.moment(stream.socket.received_at)
            self._seam.heard(arrival)
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
                case cartesia.TurnStart():
                    self._hear(Input.START, None, arrival)
                    await self._seam.turn_started(arrival)
                case cartesia.TurnEnd():
                    await self._hear_end(message, arrival)
                case cartesia.Connected():
                    pass
                case _:
                    text = getattr(message, "transcript", None)
                    self._hear(_INPUTS[type(message)], text, arrival)
            self._watchdog.said(self._uplink.ms_of(self._uplink.sent))
        self._release_end(final=True)
        if self.phase is not Phase.FLUSHING:
            raise SttTransient("the service closed the socket without being asked", status=1000)
        self._conclude("close")
        if self._read_to_end:
            self._finish("end")
        else:
            await self._host.gate.leave(self._gate_member)

    async def _lose(self, error: SttError) -> None:
        if is_idle_close(error.status, str(error)):
            await self._host.gate.leave(self._gate_member)
            return
        self._host.stats.sockets_lost += 1
        if isinstance(error, SttPermanent):
            self._fail("stt_refused", str(error), status=error.status)
            return
        log.info("%s: socket lost: %s", self._entry.session, error)
        self._enter(Phase.CONNECTING)
        await anyio.sleep(self._backoff.next_s())

    def _flush(self, stream: Stream) -> None:
        self._enter(Phase.FLUSHING)
        self.epoch += 1  # a read may be under way
        stream.send_close()

    # -- what is said, and what it covers

    def _hear(self, said: Input, text: str | None, arrival: Moment) -> None:
        self._narrator.tell(self._tracker.hear(said, text, arrival.fed))

    async def _hear_end(self, message: cartesia.TurnEnd, arrival: Moment) -> None:
        fed = arrival.fed
        if not self._tracker.will_end(message.transcript, fed):
            self._hear(Input.END, message.transcript, arrival)
            return
        cut = await self._seam.cut(arrival)
        if self.phase is Phase.FLUSHING:
            # It covers all that was sent, unless another turn follows: the next message tells.
            self._held_end = (message.transcript, cut)
        else:
            drafts = self._tracker.hear(Input.END, message.transcript, fed)
            self._cover(cut, drafts, "model")

    def _release_end(self, *, final: bool) -> None:
        """Publish a turn's end that came during a flush, now that it is known what it covers."""
        if self._held_end is None:
            return
        (text, cut), self._held_end = self._held_end, None
        fed = self._uplink.fed
        self._cover(fed if final else cut, self._tracker.hear(Input.END, text, fed), "close")

    def _conclude(self, reason: EndReason) -> None:
        """Settle all that was sent, ending the open turn if the service did not."""
        self._cover(self._uplink.fed, self._tracker.conclude(reason), reason)

    def _cover(self, position: int, drafts: list[Draft], reason: EndReason) -> None:
        if self._ledger.commit_to(position):
            self._uplink.committed()
            self._backoff.reset()
            self._flushes = 0
        self._narrator.tell([msgspec.structs.replace(draft, reason=reason) for draft in drafts])
        self._narrator.publisher.touch()

    def _place(self) -> Place:
        """Say where an event made now stands."""
        return Place(self._uplink.fed_ms, self._request_id, self._connection)

    def _written(self) -> Written:
        """Say what goes with the events of the next commit."""
        self._configs.settle(self._ledger.committed.entry)
        snapshot = Snapshot(
            ledger=self._ledger.state,
            turns=self._tracker.state,
            config=self._configs.settled,
            connection=self._connection,
            request_id=self._request_id,
        )
        return Written(msgspec.json.encode(snapshot), self._ledger.committed.entry)

    # -- the end

    def _finish(self, reason: SessionEndReason) -> None:
        self._narrator.end(reason, self._tracker.state.turn)
        self.phase = Phase.OVER

    def _fail(self, code: str, message: str, *, status: int) -> None:
        """End the session for a fault that no retry can cure."""
        log.error("%s: ended: %s", self._entry.session, message)
        self._narrator.tell(self._tracker.conclude("close"))
        self._narrator.error(code, message, status=status, fatal=True)
        self._finish("error")
        self._epitaph = (code, message)

    def _bury(self) -> None:
        """Put a session that failed on the dead stream, now that its end is ours for certain."""
        if self._epitaph is not None:
            fence, keys = self.ownership.fence, self._host.keys
            self._host.bury(fence.entry, keys.sessions, self._entry.session, *self._epitaph, {})

    def _refuse(self, entry_id: str, fields: Fields, fault: EntryFault) -> None:
        if self._ledger.announce(entry_id):
            self._narrator.error(f"audio_{fault.reason}", f"audio entry {entry_id}: {fault}")
            self._host.bury(
                entry_id, self.audio_key, self._entry.session, fault.reason, str(fault), fields
            )
