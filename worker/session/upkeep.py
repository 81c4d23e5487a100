"""Upkeep of a session's sockets: detects dead sockets, stuck turns and repeated failures."""

import logging
import time

from worker.context import WorkerContext
from worker.core.connection_health import (
    IDLE_PING_INTERVAL_S,
    PING_INTERVAL_S,
    Keepalive,
    RepeatedLosses,
    Watchdog,
    WatchdogAction,
)
from worker.core.ledger import Ledger
from worker.core.polling import PollSchedule
from worker.core.provider_errors import is_idle_close, is_provider_error
from worker.core.turn_config import TurnConfigHistory
from worker.core.turn_tracker import TurnTracker
from worker.errors import (
    SttBusyError,
    SttCredentialsError,
    SttError,
    SttPermanentError,
    SttProtocolError,
    SttTooBigError,
)
from worker.session.publisher import EventPublisher
from worker.session.receiver import MessageReceiver
from worker.session.sender import AudioSender
from worker.stt.cartesia import TurnsStream
from worker.telemetry.logs import SessionName

log = logging.getLogger(__name__)

MAX_FLUSH_ATTEMPTS = 3
"""Maximum failed flushes in a row; after that an open turn is ended without an answer."""


SAME_PLACE_MS = 2_000
"""Maximum distance between two loss positions that count as the same, because lag varies."""


_NO_LOSS = (SttPermanentError, SttCredentialsError, SttBusyError)
"""Errors that are unrelated to the audio."""


class Upkeep:
    """Monitors one session's sockets, one after another."""

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
        publisher: EventPublisher,
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
        self._publisher = publisher
        self._watchdog = Watchdog()
        self._keepalive = Keepalive(time.monotonic())
        self._failed_flushes = 0
        self._repeats = RepeatedLosses(sender.bytes_of(SAME_PLACE_MS))
        self._turn_messages = False  # whether the provider sent any on this socket

    def connected(self, now: float, *, progressed: bool) -> None:
        """Start on a new socket; `progressed` is whether the last one committed audio."""
        if progressed:
            self._failed_flushes = 0
        self._keepalive = Keepalive(now)
        self._watchdog.restart()
        self._turn_messages = False

    def lost(self, error: SttError, now: float, *, flushing: bool) -> None:
        """Handle a lost socket, before its audio is rewound.

        Audio at which the provider fails on one socket after another is skipped.
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
            log.warning(
                "%s: skipping audio at which the provider fails repeatedly (%s)", self._name, error
            )
            self.force_turn_end()

    def _can_send_less(self, error: SttTooBigError) -> bool:
        limit, before = self._context.frame_limit, self._context.frame_limit.max_bytes
        possible = limit.refused(self._sender.largest)
        if limit.max_bytes < before:
            log.warning(
                "%s: the provider rejects messages of %d bytes (%s); this worker sends at most %d",
                *(self._name, self._sender.largest, error, limit.max_bytes),
            )
        return possible

    def on_provider_message(self, *, about_turn: bool) -> None:
        """Record a message from the provider; `about_turn` is whether it belongs to a turn."""
        self._turn_messages = self._turn_messages or about_turn
        self._watchdog.on_message(self._sender.ms_of(self._sender.socket_bytes))

    def check_connection(self, stream: TurnsStream, now: float) -> None:
        """Ping the provider, drop a dead socket, and commit silence that the provider received."""
        every_s = PING_INTERVAL_S if self._receiver.inside_turn else IDLE_PING_INTERVAL_S
        received = self._keepalive.check(stream.socket, now, self._sender.session_bytes, every_s)
        if received is not None:
            self._receiver.commit_silence(received)

    @property
    def _up_since(self) -> float:
        """Start of Redis's current availability. A Redis outage is not a pause of the producer."""
        return max(self._context.health.since, self._context.reader.lane(self._lane).up_since)

    def drive_open_turn(self, stream: TurnsStream, now: float) -> None:
        """Send filler if the producer stopped, and act on a stuck turn."""
        self._sender.send_filler(now, self._up_since, self._poll_schedule.last_polled_at)
        sent_ms = self._sender.ms_of(self._sender.socket_bytes)
        if not self._watchdog.is_due(sent_ms):
            return
        timeout_ms = self._context.turn.merged(self._configs.current).turn_end_timeout_ms
        action = self._watchdog.check(self._tracker.state.turn, sent_ms, timeout_ms)
        # Whether this socket has not yet reached the text that consumers saw.
        behind = self._sender.session_bytes < self._tracker.last_growth
        if (
            action is WatchdogAction.NONE
            or not stream.socket.open
            or (action is WatchdogAction.END and behind)
        ):
            return
        log.warning("%s: the open turn is stuck, %s", self._name, action.value)
        if action is WatchdogAction.END:
            self.force_turn_end()
        # The socket is unusable even after a forced end: the provider is still inside its turn.
        stream.socket.abort("the open turn is stuck")

    def producer_idle_s(self, since: float) -> float:
        """Return how long the producer is known to have been silent since `since`.

        The time counts up to the last poll. A Redis outage does not count: the producer could not
        append during it.
        """
        return self._poll_schedule.last_polled_at - max(since, self._up_since)

    def on_flush_failed(self) -> None:
        """Count a failed flush, and end the turn without an answer after `MAX_FLUSH_ATTEMPTS`.

        Before that, the flush is retried on a new socket.
        """
        self._failed_flushes += 1
        if self._failed_flushes >= MAX_FLUSH_ATTEMPTS:
            log.warning("%s: flush given up after %d attempts", self._name, self._failed_flushes)
            self.force_turn_end()

    def flush_refused(self) -> None:
        """Commit everything sent, after the provider refused to transcribe the rest.

        The refusal is published as an error. Between turns the rest is only silence.
        """
        untranscribed_ms = self._untranscribed_ms if self._tracker.open else 0
        self._receiver.commit_all_sent("close")
        if untranscribed_ms:
            self._publisher.publish_gap(untranscribed_ms, "watchdog")

    def force_turn_end(self) -> None:
        """End the stuck turn, and report untranscribed audio."""
        self._receiver.publish_text()
        untranscribed_ms = self._untranscribed_ms
        publish = self._tracker.open or untranscribed_ms
        self._receiver.commit_all_sent("watchdog")
        if publish:
            self._publisher.publish_gap(untranscribed_ms, "watchdog")

    @property
    def _untranscribed_ms(self) -> int:
        """Audio sent since the open turn's text last grew, or that no event covers."""
        position = self._tracker.last_growth
        if not self._tracker.open:
            position = self._sender.session_bytes - self._sender.uncommitted_bytes
        return int(self._sender.ms_of(max(0, self._sender.session_bytes - position)))
