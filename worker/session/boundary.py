"""The boundary between two turns: which of the session's audio an ended turn covers.

`worker.core.turn_boundary` decides. This module keeps what it decides from: when the messages of
one socket arrived, and what the sender had sent by then.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from worker.core.send_log import SendPosition
from worker.core.transcripts import same_words
from worker.core.turn_alignment import Message
from worker.core.turn_boundary import (
    BURST_GAP_S,
    DEFAULT_LAG_S,
    LOOKBACK_MS,
    SHORT_LOOKBACK_MS,
    Arrival,
    Burst,
    History,
    Onset,
    ProviderLag,
    SentAudio,
    find_end,
    find_pause,
    find_resume,
    find_start,
)
from worker.core.turn_tracker import ProviderInput
from worker.event_loop import StallDetector
from worker.session.sender import AudioSender

MAX_MESSAGES: Final = 32
"""Maximum number of messages of a turn that are kept: more than arrive within the lookback."""


class TurnBoundaryFinder:
    """Finds the end of each turn's audio on one socket after another."""

    __slots__ = (
        "_burst_after",
        "_burst_handled",
        "_eager_end_at",
        "_early_end",
        "_ended_until",
        "_message_at",
        "_messages",
        "_onsets",
        "_open_until",
        "_previous_lag_s",
        "_provider_lag",
        "_sender",
        "_stalls",
        "_start",
        "_start_burst",
        "_text",
        "last_change",
        "speech_ended_at",
        "waiting",
    )

    def __init__(
        self, sender: AudioSender, stalls: StallDetector, provider_lag: ProviderLag
    ) -> None:
        self._provider_lag = provider_lag
        self._sender = sender
        self._stalls = stalls
        self.speech_ended_at: float | None = None
        """When the last sound of the last ended turn was sent; None if unknown."""
        self.reset(time.monotonic())

    def reset(self, now: float) -> None:
        """Begin on a new socket."""
        self._message_at = now  # arrival of the last message
        self._burst_after = now  # arrival of the last message before the current burst
        self._burst_handled = 0  # messages of the burst handled so far
        # Messages about the turn: kind, arrival, and whether it came with the one before it.
        self._messages: deque[tuple[ProviderInput, float, bool]] = deque(maxlen=MAX_MESSAGES)
        self.waiting = 0
        """Messages of the burst that are not handled yet."""
        self._previous_lag_s: float | None = None  # of the previous turn on this socket
        self._early_end: SendPosition | None = None  # of a replayed turn, not yet located
        self._ended_until = 0  # session byte at which the last such turn ended
        self._begin_turn(SendPosition(now, 0, 0), [])

    def _begin_turn(self, start: SendPosition, onsets: Sequence[Onset]) -> None:
        self._start = start
        self._start_burst = self._burst
        self._onsets = onsets
        self._open_until = onsets[0].sent if onsets else 0
        self._eager_end_at: int | None = None
        self._messages.clear()
        self._text = ""
        self.last_change = start.socket_bytes
        """Byte of the socket sent when the turn's words last changed."""

    def on_message(self, arrival: SendPosition, waiting: int) -> None:
        """Record the arrival of any message, before its burst is handled."""
        if arrival.at - self._message_at >= BURST_GAP_S:
            self._burst_after, self._burst_handled = self._message_at, 0
        self._message_at = arrival.at
        self._burst_handled += 1
        self.waiting = waiting
        # The turn's start may be in this burst.
        if self._start.at > self._burst_after and self._burst.is_delayed:
            self._start_burst = self._burst

    @property
    def usual_lag_s(self) -> float:
        """The usual lag of a provider that sends no times."""
        known_s = self._provider_lag.seconds
        return DEFAULT_LAG_S if known_s is None else known_s

    @property
    def is_on_time(self) -> bool:
        """Whether nothing indicates that the last message was delayed."""
        return not self._burst.is_delayed and self._earliest(self._message_at) == self._message_at

    def on_start(self, arrival: SendPosition) -> int:
        """Find the sounds that may have caused a `turn.start`.

        Returns the session byte before which none of them begins; 0 if unknown.
        """
        if self._early_end is not None:
            self._locate_early_end(self._early_end, begins=self._early_end.at > self._burst_after)
        history = self._history(arrival, SHORT_LOOKBACK_MS)
        start = find_start(history)
        if not start.lookback_suffices:
            start = find_start(self._with_lookback(history, LOOKBACK_MS))
        self._begin_turn(arrival, start.onsets)
        self._record(ProviderInput.START, arrival)
        return start.lead_in_until

    def on_transcript(self, text: str, arrival: SendPosition) -> None:
        """Record a transcript of the turn."""
        if not same_words(text, self._text):
            self.last_change = arrival.socket_bytes
            self._eager_end_at = None  # words followed
            self._record(ProviderInput.UPDATE, arrival)
        self._text = text

    def on_eager_end(self, arrival: SendPosition) -> None:
        """Record a `turn.eager_end`, after its transcript."""
        self._eager_end_at = arrival.socket_bytes
        self._record(ProviderInput.EAGER_END, arrival)

    def on_resume(self, arrival: SendPosition) -> None:
        """Record a `turn.resume`: the provider received more speech after a silence.

        That silence is located now, because the turn's end may be too late for the lookback.
        """
        self._open_until = find_resume(self._history(arrival, LOOKBACK_MS))
        self._eager_end_at = None
        self._record(ProviderInput.RESUME, arrival)

    def on_early_end(self, arrival: SendPosition) -> None:
        """Record a `turn.end` of a replay that ends no turn of the consumers, so commits nothing.

        The audio before it belongs to no later turn of this socket, as if it were committed.
        """
        self._early_end = arrival
        if not self.waiting:  # a `turn.start` may be waiting
            self._locate_early_end(arrival, begins=False)

    def _locate_early_end(self, arrival: SendPosition, *, begins: bool) -> None:
        self._early_end = None
        self._ended_until = self.find_end(arrival, begins=begins)

    def find_end(self, arrival: SendPosition, *, begins: bool = False) -> int:
        """Return the session byte at which the turn ends whose `turn.end` arrived at `arrival`.

        `begins` is whether a `turn.start` arrived with it.
        """
        history = self._history(arrival, SHORT_LOOKBACK_MS)
        end = find_end(history, begins=begins)
        if not end.lookback_suffices:
            history = self._with_lookback(history, LOOKBACK_MS)
            end = find_end(history._replace(messages=self._turn_messages(arrival)), begins=begins)
        self.speech_ended_at = end.speech_ended_at
        if end.lag_s is not None:
            self._previous_lag_s = end.lag_s
            self._provider_lag.observe(end.lag_s)
        return end.position

    def find_pause(self, arrival: SendPosition, last_change: int) -> int | None:
        """Return the session byte inside the pause that caused an eager end at `arrival`.

        `last_change` is the value of `self.last_change` at that time. Returns None if uncertain.
        """
        history = self._history(arrival, LOOKBACK_MS)
        # Words followed this pause, so a later `turn.resume` does not concern it.
        history = history._replace(last_change=last_change, open_until=0, eager_end_at=None)
        return find_pause(history)

    def _history(self, arrival: SendPosition, lookback_ms: int) -> History:
        """Return what is known of the turn and of the audio last sent at `arrival`."""
        return History(
            Arrival(arrival, self._earliest(arrival.at), self._burst),
            self._sent_audio(arrival, lookback_ms),
            Arrival(self._start, self._earliest(self._start.at), self._start_burst),
            self._onsets,
            self.last_change,
            self._open_until,
            self._eager_end_at,
            self._provider_lag.seconds,
            self._previous_lag_s,
        )

    def _with_lookback(self, history: History, lookback_ms: int) -> History:
        """Return the same with a longer lookback: only the earlier audio is examined anew."""
        return history._replace(audio=self._sent_audio(history.arrival.sent, lookback_ms))

    def _sent_audio(self, arrival: SendPosition, lookback_ms: int) -> SentAudio:
        """Return the frames sent before `arrival`, without those of a turn that ended early."""
        audio = self._sender.sent_audio(arrival, lookback_ms)
        return audio.after(self._ended_until) if self._ended_until else audio

    def _record(self, kind: ProviderInput, arrival: SendPosition) -> None:
        self._messages.append((kind, arrival.at, self._is_together(arrival)))

    def _is_together(self, arrival: SendPosition) -> bool:
        """Whether a message came with the one before it, or is one whose text is recorded."""
        messages = self._messages
        return self._burst_handled > 1 or bool(messages and messages[-1][1] == arrival.at)

    def _turn_messages(self, end: SendPosition) -> list[Message]:
        """Return the messages about the turn whose `turn.end` arrived."""
        recorded = [*self._messages, (ProviderInput.END, end.at, self._is_together(end))]
        return [Message(kind, at, self._earliest(at), late) for kind, at, late in recorded]

    @property
    def _burst(self) -> Burst:
        return Burst(self._burst_after, self._burst_handled + self.waiting, self.waiting)

    def _earliest(self, at: float) -> float:
        """Return the earliest time at which a message read at `at` may have arrived."""
        self._stalls.tick(time.monotonic())  # the process may have just resumed
        return self._stalls.earliest_arrival(at)
