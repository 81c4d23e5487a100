"""Upkeep of a session's sockets: notices dead ones, stuck turns, and failures that repeat."""

import logging
import time

from worker.context import WorkerContext
from worker.core.keepalive import IDLE_PING_INTERVAL_S, PING_INTERVAL_S, Keepalive
from worker.core.ledger import Ledger
from worker.core.polling import PollSchedule
from worker.core.provider_errors import is_idle_close, is_provider_error
from worker.core.repeats import Repeats
from worker.core.turn_config import TurnConfigHistory
from worker.core.turn_tracker import TurnTracker
from worker.core.watchdog import Watchdog, WatchdogAction
from worker.errors import (
    SttBusyError,
    SttCredentialsError,
    SttError,
    SttPermanentError,
    SttProtocolError,
    SttTooBigError,
)
from worker.session.narrator import Narrator
from worker.session.receiver import MessageReceiver
from worker.session.sender import AudioSender
from worker.stt.cartesia import TurnsStream
from worker.telemetry.logs import SessionName

log = logging.getLogger(__name__)

MAX_FLUSH_ATTEMPTS = 3
"""Flushes in a row without an answer after which an open turn is ended without one."""


SAME_PLACE_MS = 2_000
"""Audio between two places at which sockets were lost that count as the same: lag varies."""


_NO_LOSS = (SttPermanentError, SttCredentialsError, SttBusyError)
"""Errors that say nothing about the audio."""


class Upkeep:
    """Looks after one session's sockets, one after the other."""

    def __init__(
        self,
        context: WorkerContext,
        name: SessionName,
        lane: str,
        poll_schedule: PollSchedule,
        configs: TurnConfigHistory,
        ledger: Ledger,
        sender: AudioSender,
        tracker: TurnTracker,
        receiver: MessageReceiver,
        narrator: Narrator,
    ) -> None:
        self._context = context
        self._name = name
        self._lane = lane
        self._poll_schedule = poll_schedule
        self._configs = configs
        self._ledger = ledger
        self._sender = sender
        self._tracker = tracker
        self._receiver = receiver
        self._narrator = narrator
        self._watchdog = Watchdog()
        self._keepalive = Keepalive(time.monotonic())
        self._failed_flushes = 0
        self._repeats = Repeats(sender.bytes_of(SAME_PLACE_MS))
        self._turn_messages = False  # the provider sent some on this socket

    def connected(self, now: float, *, progressed: bool) -> None:
        """Begin with a new socket; `progressed` tells whether the last one got audio committed."""
        if progressed:
            self._failed_flushes = 0
        self._keepalive = Keepalive(now)
        self._watchdog.restart()
        self._turn_messages = False

    def lost(self, error: SttError, now: float, *, flushing: bool) -> None:
        """Note that the socket was lost, before its audio is taken back.

        Audio at which the provider fails on one socket after another is given up.
        """
        if isinstance(error, _NO_LOSS) or is_idle_close(error.status, str(error)):
            return
        if isinstance(error, SttTooBigError) and self._can_send_less(error):
            return
        broken = isinstance(error, SttProtocolError)
        if flushing and (broken or is_provider_error(error)):
            self.on_flush_failed()
        if not (self._turn_messages or broken or isinstance(error, SttTooBigError)):
            return  # an outage
        certain = isinstance(error, SttTooBigError) or (broken and self._turn_messages)
        progress = (self._ledger.committed_bytes, self._tracker.last_growth)
        if self._repeats.lost(self._sender.session_bytes, progress, now, certain=certain):
            log.warning("%s: giving up audio at which the provider fails: %s", self._name, error)
            self.force_turn_end()

    def _can_send_less(self, error: SttTooBigError) -> bool:
        limit, before = self._context.frame_limit, self._context.frame_limit.max_bytes
        possible = limit.refused(self._sender.largest)
        if limit.max_bytes < before:
            log.warning(
                "%s: the provider refuses messages of %d bytes (%s); this worker sends at most %d",
                *(self._name, self._sender.largest, error, limit.max_bytes),
            )
        return possible

    def on_provider_message(self, *, about_turn: bool) -> None:
        """Note that the service said something; `about_turn` is whether it was of a turn."""
        self._turn_messages = self._turn_messages or about_turn
        self._watchdog.on_message(self._sender.ms_of(self._sender.socket_bytes))

    def check_connection(self, stream: TurnsStream, now: float) -> None:
        """Ping the service, and drop a socket that is dead; settle silence that it has heard."""
        every_s = PING_INTERVAL_S if self._receiver.inside_turn else IDLE_PING_INTERVAL_S
        heard = self._keepalive.check(stream.socket, now, self._sender.session_bytes, every_s)
        if heard is not None:
            self._receiver.commit_silence(heard)

    @property
    def _up_since(self) -> float:
        """Since when Redis answers: an outage of it is no pause of the producer's."""
        return max(self._context.health.since, self._context.reader.lane(self._lane).up_since)

    def drive_open_turn(self, stream: TurnsStream, now: float) -> None:
        """Fill in for a producer that stopped; see to a service that is stuck."""
        self._sender.send_filler(now, self._up_since, self._poll_schedule.last_polled_at)
        sent_ms = self._sender.ms_of(self._sender.socket_bytes)
        if not self._watchdog.is_due(sent_ms):
            return
        timeout_ms = self._context.turn.merged(self._configs.current).turn_end_timeout_ms
        bark = self._watchdog.check(self._tracker.state.turn, sent_ms, timeout_ms)
        behind = (
            self._sender.session_bytes < self._tracker.last_growth
        )  # of what consumers saw of it
        if (
            bark is WatchdogAction.NONE
            or not stream.socket.open
            or (bark is WatchdogAction.END and behind)
        ):
            return
        log.warning("%s: the open turn is stuck; %s", self._name, bark.value)
        if bark is WatchdogAction.END:
            self.force_turn_end()
        # Not even after an end of ours: the service is still inside its turn.
        stream.socket.abort("the open turn is stuck")

    def producer_idle_s(self, since: float) -> float:
        """Return how long the producer has been silent since then, as far as that is known.

        Redis was asked and had nothing; while it did not answer nobody could append.
        """
        return self._poll_schedule.last_polled_at - max(since, self._up_since)

    def on_flush_failed(self) -> None:
        """Note that the service did not do it; at last, settle without an answer.

        Before that it is asked again, on a new socket.
        """
        self._failed_flushes += 1
        if self._failed_flushes >= MAX_FLUSH_ATTEMPTS:
            log.warning("%s: the service does not flush; given up", self._name)
            self.force_turn_end()

    def flush_refused(self) -> None:
        """Settle what was sent, the provider having refused to transcribe the rest of it.

        The refusal is published. Between turns the rest is the silence of the last pause.
        """
        untranscribed_ms = self._untranscribed_ms if self._tracker.open else 0
        self._receiver.commit_all_sent("close")
        if untranscribed_ms:
            self._narrator.publish_gap(untranscribed_ms, "watchdog")

    def force_turn_end(self) -> None:
        """End what the service will not, and say how much nobody heard of what was sent."""
        self._receiver.publish_text()
        untranscribed_ms = self._untranscribed_ms
        told = self._tracker.open or untranscribed_ms
        self._receiver.commit_all_sent("watchdog")
        if told:
            self._narrator.publish_gap(untranscribed_ms, "watchdog")

    @property
    def _untranscribed_ms(self) -> int:
        """How much audio was sent after the open turn's text last grew, or no event covers."""
        position = self._tracker.last_growth
        if not self._tracker.open:
            position = self._sender.session_bytes - self._sender.uncommitted_bytes
        return int(self._sender.ms_of(max(0, self._sender.session_bytes - position)))
