"""Upkeep of a session's sockets: notices dead ones, stuck turns, and failures that repeat."""

import logging
import time

from worker.core.configs import Configs
from worker.core.faults import is_idle_close, is_the_services
from worker.core.ledger import Ledger
from worker.core.repeats import Repeats
from worker.core.rhythm import Rhythm
from worker.core.turns import TurnTracker
from worker.core.watchdog import Bark, Watchdog
from worker.errors import (
    SttBusy,
    SttCredentials,
    SttError,
    SttPermanent,
    SttProtocolFault,
    SttTooBig,
)
from worker.host import Host
from worker.sessions.hearing import Hearing
from worker.sessions.narrator import Narrator
from worker.sessions.pulse import ASK_S, PING_S, Pulse
from worker.sessions.uplink import Uplink
from worker.stt.cartesia import Stream
from worker.telemetry.logs import SessionName

log = logging.getLogger(__name__)

FLUSH_ROUNDS = 3
"""Flushes in a row without an answer after which an open turn is ended without one."""


SAME_PLACE_MS = 2_000
"""Audio between two places at which sockets were lost that count as the same: lag varies."""


_NO_LOSS = (SttPermanent, SttCredentials, SttBusy)
"""Errors that say nothing about the audio."""


class Upkeep:
    """Looks after one session's sockets, one after the other."""

    def __init__(
        self,
        host: Host,
        name: SessionName,
        lane: str,
        rhythm: Rhythm,
        configs: Configs,
        ledger: Ledger,
        uplink: Uplink,
        tracker: TurnTracker,
        hearing: Hearing,
        narrator: Narrator,
    ) -> None:
        self._host = host
        self._name = name
        self._lane = lane
        self._rhythm = rhythm
        self._configs = configs
        self._ledger = ledger
        self._uplink = uplink
        self._tracker = tracker
        self._hearing = hearing
        self._narrator = narrator
        self._watchdog = Watchdog()
        self._pulse = Pulse(time.monotonic())
        self._unflushed = 0
        self._repeats = Repeats(uplink.bytes_of(SAME_PLACE_MS))
        self._turn_messages = False  # the provider sent some on this socket

    def connected(self, now: float, *, progressed: bool) -> None:
        """Begin with a new socket; `progressed` tells whether the last one got audio committed."""
        if progressed:
            self._unflushed = 0
        self._pulse = Pulse(now)
        self._watchdog.restart()
        self._turn_messages = False

    def lost(self, error: SttError, now: float, *, flushing: bool) -> None:
        """Note that the socket was lost, before its audio is taken back.

        Audio at which the provider fails on one socket after another is given up.
        """
        if isinstance(error, _NO_LOSS) or is_idle_close(error.status, str(error)):
            return
        if isinstance(error, SttTooBig) and self._can_send_less(error):
            return
        broken = isinstance(error, SttProtocolFault)
        if flushing and (broken or is_the_services(error)):
            self.flush_failed()
        if not (self._turn_messages or broken or isinstance(error, SttTooBig)):
            return  # an outage
        certain = isinstance(error, SttTooBig) or (broken and self._turn_messages)
        progress = (self._ledger.committed_bytes, self._tracker.grown_at)
        if self._repeats.lost(self._uplink.fed, progress, now, certain=certain):
            log.warning("%s: giving up audio at which the provider fails: %s", self._name, error)
            self.give_up_turn()

    def _can_send_less(self, error: SttTooBig) -> bool:
        limit, before = self._host.frame_limit, self._host.frame_limit.max_bytes
        possible = limit.refused(self._uplink.largest)
        if limit.max_bytes < before:
            log.warning(
                "%s: the provider refuses messages of %d bytes (%s); this worker sends at most %d",
                *(self._name, self._uplink.largest, error, limit.max_bytes),
            )
        return possible

    def said(self, *, about_turn: bool) -> None:
        """Note that the service said something; `about_turn` is whether it was of a turn."""
        self._turn_messages = self._turn_messages or about_turn
        self._watchdog.said(self._uplink.ms_of(self._uplink.sent))

    def beat(self, stream: Stream, now: float) -> None:
        """Ping the service, and drop a socket that is dead; settle silence that it has heard."""
        every_s = PING_S if self._hearing.inside_turn else ASK_S
        heard = self._pulse.beat(stream.socket, now, self._uplink.fed, every_s)
        if heard is not None:
            self._hearing.settle_silence(heard)

    @property
    def _up_since(self) -> float:
        """Since when Redis answers: an outage of it is no pause of the producer's."""
        return max(self._host.health.since, self._host.reader.lane(self._lane).up_since)

    def keep_turn_moving(self, stream: Stream, now: float) -> None:
        """Fill in for a producer that stopped; see to a service that is stuck."""
        self._uplink.fill(now, self._up_since, self._rhythm.asked_at)
        sent_ms = self._uplink.ms_of(self._uplink.sent)
        if not self._watchdog.may_bark(sent_ms):
            return
        timeout_ms = self._host.turn.merged(self._configs.current).turn_end_timeout_ms
        bark = self._watchdog.look(self._tracker.state.turn, sent_ms, timeout_ms)
        behind = self._uplink.fed < self._tracker.grown_at  # of what consumers saw of it
        if bark is Bark.NO or not stream.socket.open or (bark is Bark.END and behind):
            return
        log.warning("%s: the open turn is stuck; %s", self._name, bark.value)
        if bark is Bark.END:
            self.give_up_turn()
        # Not even after an end of ours: the service is still inside its turn.
        stream.socket.abort("the open turn is stuck")

    def silent_s(self, since: float) -> float:
        """Return how long the producer has been silent since then, as far as that is known.

        Redis was asked and had nothing; while it did not answer nobody could append.
        """
        return self._rhythm.asked_at - max(since, self._up_since)

    def flush_failed(self) -> None:
        """Note that the service did not do it; at last, settle without an answer.

        Before that it is asked again, on a new socket.
        """
        self._unflushed += 1
        if self._unflushed >= FLUSH_ROUNDS:
            log.warning("%s: the service does not flush; given up", self._name)
            self.give_up_turn()

    def flush_refused(self) -> None:
        """Settle what was sent, the provider having refused to transcribe the rest of it.

        The refusal is published. Between turns the rest is the silence of the last pause.
        """
        untranscribed_ms = self._untranscribed_ms if self._tracker.open else 0
        self._hearing.conclude("close")
        if untranscribed_ms:
            self._narrator.gap(untranscribed_ms, "watchdog")

    def give_up_turn(self) -> None:
        """End what the service will not, and say how much nobody heard of what was sent."""
        self._hearing.publish_text()
        untranscribed_ms = self._untranscribed_ms
        told = self._tracker.open or untranscribed_ms
        self._hearing.conclude("watchdog")
        if told:
            self._narrator.gap(untranscribed_ms, "watchdog")

    @property
    def _untranscribed_ms(self) -> int:
        """How much audio was sent after the open turn's text last grew, or no event covers."""
        position = self._tracker.grown_at
        if not self._tracker.open:
            position = self._uplink.fed - self._uplink.unsettled
        return int(self._uplink.ms_of(max(0, self._uplink.fed - position)))
