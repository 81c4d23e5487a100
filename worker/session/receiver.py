"""The receiver: turns provider messages into events, and commits the audio they cover.

The turn tracker decides what is published. The boundary finder finds the audio that an event
covers, and the ledger commits it.
"""

import logging
from typing import NamedTuple

from msgspec import UNSET

from schemas.turns import TurnEndReason, Word
from worker.core.records import EventDraft, TurnTimes
from worker.core.send_log import SendPosition
from worker.core.transcripts import UpdateThrottle, is_blank, parting
from worker.core.turn_boundary import BURST_GAP_S, MAX_PLAUSIBLE_LAG_S, ONSET_MARGIN_MS
from worker.core.turn_ending import turn_cut_ms
from worker.core.turn_tracker import ProviderInput
from worker.session.boundary import TurnBoundaryFinder
from worker.session.publisher import EventPublisher
from worker.session.sender import AudioSender
from worker.session.state import SessionState
from worker.stt.events import TimedWord, TurnEvent
from worker.stt.provider import Provider

log = logging.getLogger(__name__)

SILENCE_STEP_MS = 2_500
"""Minimum silence between turns that is committed at once, if the provider sends times."""

MAX_FLUSH_ATTEMPTS = 3
"""Maximum failed flushes in a row; after that an open turn is ended without an answer."""


class _PendingEnd(NamedTuple):
    """A turn's end that waits for the next message, which shows what it covers.

    During a flush it covers everything sent, unless another turn follows. In a burst of messages,
    as after a stall, the end is easier to place if it is known that a turn follows.
    """

    transcript: str
    arrival: SendPosition
    idle_bytes: int
    """As in `TurnTracker.on_input`."""


class _HeldUpdate(NamedTuple):
    """The newest text of the open turn, not yet published."""

    transcript: str
    arrival: SendPosition
    idle_bytes: int


class _EagerPause(NamedTuple):
    """A pause inside the turn for which the provider sent an eager end."""

    transcript: str
    """Transcript of the turn at the eager end."""
    arrival: SendPosition
    transcript_at: int
    """Byte of the socket sent when that transcript first arrived."""


class _LeadIn(NamedTuple):
    """Silence before a turn's first sound."""

    position: int
    """Session byte at which the silence ends."""
    arrived_at: float
    """Arrival time of the `turn.start`."""


class MessageReceiver:
    """Handles the provider's messages on one socket after another."""

    __slots__ = (
        "_boundary",
        "_eager_pause",
        "_exact",
        "_failed_flushes",
        "_held_update",
        "_last_transcript",
        "_lead_in",
        "_ledger",
        "_lifecycle",
        "_now",
        "_pending_end",
        "_publisher",
        "_sender",
        "_state",
        "_throttle",
        "_tracker",
        "_transcribed_ms",
        "_words",
        "ends_at",
        "flush_reason",
    )

    def __init__(
        self,
        state: SessionState,
        boundary: TurnBoundaryFinder,
        sender: AudioSender,
        publisher: EventPublisher,
        throttle: UpdateThrottle,
    ) -> None:
        self._state = state
        self._tracker = state.tracker
        self._ledger = state.ledger
        self._lifecycle = state.lifecycle
        self._boundary = boundary
        self._sender = sender
        self._publisher = publisher
        self._throttle = throttle
        self._held_update: _HeldUpdate | None = None
        self._now = 0.0  # time of the last message or tick
        self._pending_end: _PendingEnd | None = None
        self._eager_pause: _EagerPause | None = None
        self._lead_in: _LeadIn | None = None
        self._last_transcript = ""  # latest text of the turn on this socket
        self._failed_flushes = 0
        self.flush_reason: TurnEndReason = "close"
        """Reason of a turn's end that the provider sends during a flush, or after a command."""
        self.ends_at: int | None = None
        """Session byte at which the worker ends the turn, if the provider sends times."""
        self._exact = False  # the provider sends the times of words
        self._transcribed_ms = 0.0  # audio of this socket that is transcribed, if it sends times
        self._words: list[Word] = []  # of the open turn's parts that the provider has ended

    @property
    def inside_turn(self) -> bool:
        """Whether a turn is open, for consumers or for the provider."""
        return self._tracker.open or self._tracker.provider_in_turn

    @property
    def holds_update(self) -> bool:
        """Whether text is held back until its interval is over."""
        return self._held_update is not None

    def socket_opened(self, now: float, provider: Provider, *, progressed: bool) -> None:
        """Begin on a new socket; `progressed` is whether the last one committed audio."""
        self._exact = provider.word_times
        self._transcribed_ms = 0.0
        self._words.clear()
        self.ends_at = None
        if progressed:
            self._failed_flushes = 0
        self._last_transcript = ""
        self._tracker.socket_opened(
            may_shrink=provider.text_may_shrink,
            bare_text=provider.bare_text,
            exact=provider.word_times,
            lag=self._sender.bytes_of(1_000 * min(self._boundary.usual_lag_s, MAX_PLAUSIBLE_LAG_S)),
        )
        self._boundary.reset(now)

    def forget(self) -> None:
        """Drop everything that waited for further messages on a lost socket."""
        self._held_update = None
        self._pending_end = None
        self._eager_pause = None
        self._lead_in = None

    def on_turn_event(self, event: TurnEvent, arrival: SendPosition) -> None:
        """Handle an event with this arrival position."""
        self._now = arrival.at
        if self._exact:
            self._on_timed_event(event, arrival)
            return
        match event.kind:
            case ProviderInput.UPDATE:  # most events
                self._on_update(self._text_of(event), arrival)
            case ProviderInput.START:
                self.publish_text()
                self._last_transcript = ""
                again = self._tracker.open
                self._track(ProviderInput.START, None, arrival)
                quiet_before = self._boundary.on_start(arrival)
                # In a replay the audio before the start may belong to the open turn.
                if not again and self._boundary.is_on_time:
                    self._lead_in = _LeadIn(quiet_before, arrival.at)
            case ProviderInput.END:
                self._eager_pause = None
                self._on_end(self._text_of(event), arrival)
            case ProviderInput.EAGER_END:
                self._on_eager_end(self._text_of(event), arrival)
            case ProviderInput.RESUME:
                self.publish_text()
                self._track(ProviderInput.RESUME, None, arrival)
                if self._tracker.provider_in_turn:
                    self._boundary.on_resume(arrival)

    def _on_timed_event(self, event: TurnEvent, arrival: SendPosition) -> None:
        """Handle an event of a provider that sends times: its place does not depend on its arrival.

        Its position is the end of the audio that is transcribed, not of what was sent.
        """
        if event.transcribed_ms is not None:
            self._transcribed_ms = event.transcribed_ms
        place = arrival._replace(session_bytes=self._sender.session_byte(self._transcribed_ms))
        text = self._text_of(event)
        match event.kind:
            case ProviderInput.UPDATE:
                self._update_text(text, place)
            case ProviderInput.EAGER_END:
                self._supersede(text)
                self._track(ProviderInput.EAGER_END, text, place)
            case ProviderInput.END:
                self._end_exactly(event, text, place)
            case ProviderInput.START | ProviderInput.RESUME:  # both may come with new text
                self.publish_text()
                self._track(event.kind, None, place)
                if event.kind is ProviderInput.START:
                    self._last_transcript = event.text or ""
                if event.text:
                    self._update_text(event.text, place)

    def _end_exactly(self, event: TurnEvent, text: str, place: SendPosition) -> None:
        """End the turn, and commit its audio up to its last word."""
        if self._tracker.provider_in_turn:
            self._words += map(self._published_word, event.words)
        if not self._tracker.will_end(text, place.session_bytes):
            self.publish_text()
            self._track(ProviderInput.END, text, place)
            return
        self._held_update = None  # this text is the last one
        flushed = self.ends_at is not None and place.session_bytes >= self.ends_at
        reason = self.flush_reason if flushed else "model"
        times = self._turn_times()
        drafts = self._tracker.on_input(ProviderInput.END, text, place.session_bytes, reason)
        last_word_ms = event.words[-1].end_ms if event.words else None
        spoken_until = None if last_word_ms is None else self._sender.sent_at(last_word_ms)
        cut_ms = turn_cut_ms(last_word_ms, self._transcribed_ms)
        cut = self._sender.session_byte(cut_ms)
        self._commit_and_publish(cut, drafts, spoken_until, times)

    def _published_word(self, word: TimedWord) -> Word:
        """Return a word as consumers see it, with times of the session's audio."""
        confidence = UNSET if word.confidence is None else word.confidence
        begin_ms, end_ms = (
            int(self._sender.ms_of(self._sender.session_byte(ms)))
            for ms in (word.start_ms, word.end_ms)
        )
        return Word(word.text, begin_ms, end_ms, confidence)

    def _turn_times(self) -> TurnTimes | None:
        """Return the times of the turn that ends now; None if some of them are unknown.

        A provider without times may have transcribed the beginning, which is not sent again.
        """
        words, self._words = tuple(self._words), []
        if not words or self._tracker.begins_committed:
            return None
        listed = words if self._state.words else UNSET
        return TurnTimes(words[0].start_ms, words[-1].end_ms, listed)

    def on_transcribed(self, transcribed_ms: float) -> None:
        """Commit silence between turns that is transcribed, a few seconds at a time."""
        self._transcribed_ms = transcribed_ms
        if self.inside_turn:
            return
        position = self._sender.session_byte(transcribed_ms - ONSET_MARGIN_MS)
        if position - self._ledger.committed_bytes >= self._sender.bytes_of(SILENCE_STEP_MS):
            self.commit(position)

    def on_message(self, arrival: SendPosition, waiting: int, *, begins: bool) -> None:
        """Record the arrival of a message of any kind, before it is handled.

        `waiting` is the number of messages that arrived with it and are handled after it; `begins`
        is whether it is a `turn.start`.
        """
        if self._exact:
            return
        if self._pending_end is not None:
            self.resolve_pending_end(final=False, begins=begins)
        self._boundary.on_message(arrival, waiting)
        # A message that arrives with the next one may have been delayed, so it proves nothing.
        lead_in = self._lead_in
        if lead_in is not None:
            self._lead_in = None
            if arrival.at - lead_in.arrived_at >= BURST_GAP_S:
                self.commit(lead_in.position)
        if (
            self._eager_pause is not None
            and arrival.at - self._eager_pause.arrival.at < BURST_GAP_S
        ):
            self._eager_pause = None

    def release_update(self, now: float) -> None:
        """Publish held-back text, if its interval is over."""
        if self._held_update is not None and self._throttle.is_due(now):
            self._now = now
            self.publish_text()

    def publish_text(self) -> None:
        """Publish held-back text, if any."""
        held, self._held_update = self._held_update, None
        if held is not None:
            self._track(ProviderInput.UPDATE, held.transcript, held.arrival, held.idle_bytes)

    def resolve_pending_end(self, *, final: bool, begins: bool = False) -> None:
        """Publish a pending turn end, now that it is known what it covers."""
        if self._pending_end is None:
            return
        pending, self._pending_end = self._pending_end, None
        if final:
            cut, spoken_until = self._sender.session_bytes, None
        else:
            cut, spoken_until = (
                self._boundary.find_end(pending.arrival, begins=begins),
                self._boundary.speech_ended_at,
            )
        self._supersede(pending.transcript)
        # A turn that another one follows was ended by the provider, also during a flush.
        flushed = self._lifecycle.flushing and not begins
        reason: TurnEndReason = self.flush_reason if flushed else "model"
        drafts = self._tracker.on_input(
            ProviderInput.END,
            pending.transcript,
            pending.arrival.session_bytes,
            reason,
            pending.idle_bytes,
        )
        self._commit_and_publish(cut, drafts, spoken_until)

    def commit_all_sent(self, reason: TurnEndReason) -> None:
        """Commit everything sent, and end the open turn if the provider did not."""
        self.publish_text()
        self._commit_and_publish(self._sender.session_bytes, self._tracker.force_end(reason))

    def end_turn_early(self) -> None:
        """End the open turn, if any, because the rest of its audio will not be transcribed."""
        self.publish_text()
        self._publish(self._tracker.force_end("watchdog"))

    def commit_silence(self, position: int) -> None:
        """Commit audio between turns that the provider received up to session byte `position`."""
        if not self.inside_turn:
            self.commit(position - self._sender.bytes_of(ONSET_MARGIN_MS))

    def commit(self, position: int) -> bool:
        """Commit the session up to byte `position`; return whether the position moved.

        Every commit of audio is made here. The publisher sends it with the events published before
        the worker next waits.
        """
        if not self._ledger.commit_to(position):
            return False
        self._sender.forget_committed()
        self._publisher.request_commit()
        return True

    def flush_failed(self) -> None:
        """Count a failed flush, and end the turn without an answer after `MAX_FLUSH_ATTEMPTS`.

        Before that, the flush is retried on a new socket.
        """
        self._failed_flushes += 1
        if self._failed_flushes >= MAX_FLUSH_ATTEMPTS:
            attempts = self._failed_flushes
            log.warning("%s: flush given up after %d attempts", self._publisher.name, attempts)
            self.abandon_turn()

    def flush_refused(self) -> None:
        """Commit everything sent, after the provider refused to transcribe the rest.

        The refusal is published as an error. Between turns the rest is only silence.
        """
        untranscribed_ms = self._untranscribed_ms if self._tracker.open else 0
        self.commit_all_sent(self.flush_reason)
        if untranscribed_ms:
            self._publisher.publish_gap(untranscribed_ms, "watchdog")

    def abandon_turn(self) -> None:
        """End the open turn, if any, commit everything sent, and report untranscribed audio."""
        self.publish_text()
        untranscribed_ms = self._untranscribed_ms
        publish = self._tracker.open or untranscribed_ms
        self.commit_all_sent("watchdog")
        if publish:
            self._publisher.publish_gap(untranscribed_ms, "watchdog")

    @property
    def _untranscribed_ms(self) -> int:
        """Audio sent since the open turn's text last grew, or that no event covers."""
        position = self._tracker.last_growth
        if not self._tracker.open:
            position = self._ledger.committed_bytes
        return int(self._sender.ms_of(max(0, self._sender.session_bytes - position)))

    def _text_of(self, event: TurnEvent) -> str:
        """Return the turn's text; an event without text leaves it unchanged."""
        if event.text is not None:
            self._last_transcript = event.text
        return self._last_transcript

    def _track(
        self, kind: ProviderInput, text: str | None, arrival: SendPosition, idle_bytes: int = 0
    ) -> None:
        drafts = self._tracker.on_input(kind, text, arrival.session_bytes, idle_bytes=idle_bytes)
        self._publish(drafts)

    def _publish(
        self,
        drafts: list[EventDraft],
        spoken_until: float | None = None,
        times: TurnTimes | None = None,
    ) -> None:
        for draft in drafts:
            if draft.kind == "turn.start":
                self._throttle.reset()
            elif draft.transcript is not None:
                self._throttle.published(draft.transcript, self._now)
        self._publisher.publish(drafts, spoken_until, times)

    def _is_throttled(self) -> bool:
        """Whether an update is held back because the last one is too recent."""
        return self._tracker.grows and not self._throttle.is_due(self._now)

    def _hold(self, text: str, arrival: SendPosition, idle_bytes: int) -> None:
        """Hold an update back, unless a longer one is held already."""
        held = self._held_update
        if held is None or len(text) >= len(held.transcript):
            self._held_update = _HeldUpdate(text, arrival, idle_bytes)
        self._state.next_tick_at = 0.0

    def _supersede(self, text: str) -> None:
        """Publish held-back text, unless `text`, which is published next, contains it."""
        if self._held_update is None:
            return
        if text.startswith(self._held_update.transcript):
            self._held_update = None
        self.publish_text()

    def _update_text(self, text: str, arrival: SendPosition, idle_bytes: int = 0) -> None:
        if self._is_throttled():
            self._hold(text, arrival, idle_bytes)
        else:
            self._supersede(text)
            self._track(ProviderInput.UPDATE, text, arrival, idle_bytes)

    def _on_update(self, text: str, arrival: SendPosition) -> None:
        self._update_text(text, arrival, self._sender.idle_bytes(arrival.at))
        if self._tracker.provider_in_turn:
            self._boundary.on_transcript(text, arrival)
            self._commit_pause(text)

    def _on_eager_end(self, text: str, arrival: SendPosition) -> None:
        self._supersede(text)
        self._track(ProviderInput.EAGER_END, text, arrival, self._sender.idle_bytes(arrival.at))
        if not self._tracker.provider_in_turn:
            return
        self._boundary.on_transcript(text, arrival)
        self._boundary.on_eager_end(arrival)
        self._commit_pause(text)
        self._eager_pause = None
        if self._boundary.is_on_time:
            self._eager_pause = _EagerPause(
                self._tracker.full_transcript(text), arrival, self._boundary.last_change
            )

    def _on_end(self, text: str, arrival: SendPosition) -> None:
        idle_bytes = self._sender.idle_bytes(arrival.at)
        if not self._tracker.will_end(text, arrival.session_bytes, idle_bytes):
            if self._tracker.provider_in_turn:
                self._boundary.on_transcript(text, arrival)
                self._boundary.on_early_end(arrival)
            self.publish_text()
            self._track(ProviderInput.END, text, arrival, idle_bytes)
            return
        self._boundary.on_transcript(text, arrival)
        self._pending_end = _PendingEnd(text, arrival, idle_bytes)
        if not self._lifecycle.flushing and not self._boundary.waiting:
            self.resolve_pending_end(final=False)

    def _commit_pause(self, text: str) -> None:
        """Commit up to a pause inside the turn, once words have followed it.

        Otherwise a long turn is replayed from its first word after every lost socket.
        """
        pause = self._eager_pause
        if pause is None:
            return
        whole = self._tracker.full_transcript(text)
        begins = whole.startswith(pause.transcript)
        if is_blank(whole[len(pause.transcript) :]):
            return  # no words followed yet
        self._eager_pause = None
        space = parting(pause.transcript, whole) if begins else None
        if space is None:
            return  # the provider revised the text before the pause
        position = self._boundary.find_pause(pause.arrival, pause.transcript_at)
        if position is not None and self.commit(position):
            self.publish_text()  # committed audio is not replayed
            self._tracker.commit_prefix(pause.transcript, space)

    def _commit_and_publish(
        self,
        position: int,
        drafts: list[EventDraft],
        spoken_until: float | None = None,
        times: TurnTimes | None = None,
    ) -> None:
        self.commit(position)
        self._publish(drafts, spoken_until, times)
        if not drafts:
            self._publisher.request_commit()
