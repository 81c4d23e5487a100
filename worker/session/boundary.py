"""The boundary between two turns: which of the session's audio an ended turn covers.

`worker.core.turn_boundary` decides, from the sender's record of the sound that it sent.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

from schemas.audio import SessionEntry
from worker.core.ledger import Ledger
from worker.core.levels import FRAME_MS, frame_bytes
from worker.core.provider_lag import ProviderLag
from worker.core.send_log import SendPosition
from worker.core.transcripts import same_words
from worker.core.turn_boundary import (
    DEFAULT_LAG_S,
    LOOKBACK_MS,
    MIN_END_SILENCE_MS,
    ONSET_DETECTION_S,
    Candidate,
    SilenceMap,
    SilenceSpan,
    SpeechStart,
    best_candidate,
    silence_spans,
    spans_after_last_word,
    speech_starts,
    timeline,
    turn_open_until,
)
from worker.event_loop import StallDetector
from worker.session.sender import AudioSender

MIN_BURST = 2
CERTAIN_BURST = 3
BURST_GAP_S = 0.05
"""Messages that arrive within `BURST_GAP_S` of each other may have been delayed together. Fewer
than `CERTAIN_BURST` may also come from one long chunk."""

SHORT_LOOKBACK_MS = 1_500
"""First lookback: long enough for most turns, if the provider's lag is as usual."""

PRE_SPEECH_MS = 300
"""Silence kept uncommitted before a turn, for a replay to a new socket."""

LAG_TOLERANCE_S = 0.1
"""Maximum difference of a steady lag from turn to turn."""

MAX_PAUSE_MISFIT_S = 0.1
"""Maximum change of lag since the turn began for which a pause inside the turn is trusted."""

MAX_PLAUSIBLE_LAG_S = 1.5
"""Maximum lag considered. A pause is trusted only if no other pause fits any lag up to this."""


class _TurnStart(NamedTuple):
    """A `turn.start`."""

    arrived_at: float
    held_up_since: float | None
    """Arrival time of the last message before the burst; None if it did not arrive in one."""
    certain: bool
    """Whether the burst is too large to come from one long chunk."""
    sounds: list[tuple[int, float]]
    """Bytes of the socket at which the turn's first sound may begin, and when they were sent."""


class TurnBoundaryFinder:
    """Finds the end of each turn's audio on one socket after another."""

    def __init__(
        self,
        entry: SessionEntry,
        ledger: Ledger,
        sender: AudioSender,
        stalls: StallDetector,
        provider_lag: ProviderLag,
    ) -> None:
        self._provider_lag = provider_lag
        self._ledger = ledger
        self._sender = sender
        self._stalls = stalls
        self._frame = frame_bytes(entry.encoding, entry.sample_rate)
        self._least_pause = MIN_END_SILENCE_MS // FRAME_MS * self._frame
        self.speech_ended_at: float | None = None
        """When the last sound of the last ended turn was sent; None if unknown."""
        self.reset(time.monotonic())

    def reset(self, now: float) -> None:
        """Begin on a new socket."""
        self._message_at = now  # arrival of the last message
        self._before_burst_at = now  # arrival of the last message before the current burst
        self._burst_handled = 0  # messages of the burst handled so far
        self.waiting = 0
        """Messages of the burst that are not handled yet."""
        self._burst = 0  # all messages of the burst
        self._start = _TurnStart(now, None, certain=False, sounds=[])
        self._begin_turn(0)
        self._lag_before_s: float | None = None  # of the previous turn on this socket

    def on_message(self, arrival: SendPosition, waiting: int) -> None:
        """Record the arrival of any message, before its burst is handled."""
        if arrival.at - self._message_at >= BURST_GAP_S:
            self._before_burst_at, self._burst_handled = self._message_at, 0
        self._message_at = arrival.at
        self._burst_handled += 1
        self.waiting = waiting
        self._burst = self._burst_handled + waiting
        if self._burst >= MIN_BURST and self._start.arrived_at > self._before_burst_at:
            self._start = self._start._replace(
                held_up_since=self._before_burst_at, certain=self._burst >= CERTAIN_BURST
            )

    @property
    def is_on_time(self) -> bool:
        """Whether nothing indicates that the last message was delayed."""
        return self._burst < MIN_BURST and self._earliest(self._message_at) == self._message_at

    def on_start(self, arrival: SendPosition) -> int:
        """Find the sounds that may have caused a `turn.start`.

        Returns the session byte before which none of them begins; 0 if unknown.
        """
        self._begin_turn(arrival.socket_bytes)
        held_up_since = self._before_burst_at if self._burst >= MIN_BURST else None
        certain = self._burst >= CERTAIN_BURST
        look = self._recent_levels(arrival, SHORT_LOOKBACK_MS)
        self._start = _TurnStart(
            arrival.at, held_up_since, certain=certain, sounds=self._sounds(look, arrival)
        )
        if not self._is_usual_start(look):
            look = self._recent_levels(arrival, LOOKBACK_MS)
            self._start = self._start._replace(sounds=self._sounds(look, arrival))
        usual_s, sounds = self._provider_lag.seconds, self._start.sounds
        self._open_until = sounds[0][0] if sounds else 0
        if usual_s is None or not sounds or arrival.at - sounds[0][1] < usual_s - LAG_TOLERANCE_S:
            return 0  # the turn may have begun before the lookback
        # A sound in the first frame may have begun before it.
        first = speech_starts(look.silent)[0] - PRE_SPEECH_MS // FRAME_MS
        return look.positions[first] if first > 0 else 0

    def _begin_turn(self, sent: int) -> None:
        self._text = ""
        self.last_change = sent
        """Byte of the socket sent when the turn's words last changed."""
        self._open_until = 0
        """Byte of the socket before which the turn was certainly open."""

    def on_transcript(self, text: str, arrival: SendPosition) -> None:
        """Record a transcript of the turn."""
        if not same_words(text, self._text):
            self.last_change = arrival.socket_bytes
        self._text = text

    def on_resume(self, arrival: SendPosition) -> None:
        """Record a `turn.resume`: the provider received more speech after a silence.

        That silence is located now, because the turn's end may be too late for the lookback.
        """
        look = self._recent_levels(arrival, LOOKBACK_MS)
        first = arrival.socket_bytes - len(look.silent) * self._frame
        since = max(self._open_until, self._received_by(self._before_burst_at, LAG_TOLERANCE_S))
        if self._burst >= MIN_BURST and first - since >= self._least_pause:
            return  # after so long a delay the silence may lie before the lookback
        open_at = max(-1, (self._open_until - first) // self._frame)  # -1: before the lookback
        open_until = first + turn_open_until(look.silent, open_at) * self._frame
        self._open_until = max(self._open_until, open_until)

    def _sounds(self, look: SilenceMap, arrival: SendPosition) -> list[tuple[int, float]]:
        """Return the bytes of the socket at which sounds begin, and when they were sent."""
        first = arrival.socket_bytes - len(look.silent) * self._frame
        bytes_ = [first + frame * self._frame for frame in speech_starts(look.silent)]
        sent = [(byte, self._sender.send_log.sent_at(byte)) for byte in bytes_]
        return [(byte, sent_at) for byte, sent_at in sent if sent_at is not None]

    def _is_usual_start(self, look: SilenceMap) -> bool:
        """Return whether the only sound found fits the usual lag."""
        usual_s, sounds = self._provider_lag.seconds, self._start.sounds
        if self._burst >= MIN_BURST or usual_s is None or len(sounds) != 1 or not look.silent[0]:
            return False
        return abs(self._start.arrived_at - sounds[0][1] - usual_s) <= LAG_TOLERANCE_S

    def find_end(self, arrival: SendPosition, begins: bool = False) -> int:
        """Return the session byte at which the turn ends whose `turn.end` arrived at `arrival`.

        `begins` is whether a `turn.start` arrived with it.
        """
        pair, ends = self._match(
            arrival, SHORT_LOOKBACK_MS, self.last_change, self._open_until, begins
        )
        if pair is None or not self._is_usual_end(pair):
            pair, ends = self._match(
                arrival, LOOKBACK_MS, self.last_change, self._open_until, begins
            )
        pause = pair.pause if pair else max(ends, key=lambda end: end.middle, default=None)
        self.speech_ended_at = pause and self._sender.send_log.sent_at(pause.sent)
        if pair is not None:
            self._lag_before_s = pair.lag_s
            self._provider_lag.observe(pair.lag_s)
        return pause.middle if pause else arrival.session_bytes

    def _is_usual_end(self, pair: Candidate) -> bool:
        """Return whether no earlier audio could match better."""
        usual_s = self._provider_lag.seconds
        if self._burst >= MIN_BURST or usual_s is None:
            return False
        if pair.apart_s or abs(pair.lag_s - usual_s) > LAG_TOLERANCE_S:
            return False
        pause = pair.pause
        return pause.begun and pause.until - pause.sent >= self._least_pause

    def find_pause(self, arrival: SendPosition, last_change: int) -> int | None:
        """Return the session byte inside the pause that caused an eager end at `arrival`.

        `last_change` is the value of `self.last_change` at that time. Returns None if uncertain.
        """
        pair, ends = self._match(arrival, LOOKBACK_MS, last_change)
        if pair is None or not self._start.sounds or self._provider_lag.seconds is None:
            return None
        possible = [
            end for end in ends if end.least_lag_s <= MAX_PLAUSIBLE_LAG_S and end.most_lag_s >= 0
        ]
        certain = pair.apart_s <= MAX_PAUSE_MISFIT_S and possible == [pair.pause]
        return pair.pause.middle if certain else None

    def _match(
        self,
        arrival: SendPosition,
        look_ms: int,
        last_change: int,
        open_until: int = 0,
        begins: bool = False,
    ) -> tuple[Candidate | None, Sequence[SilenceSpan]]:
        """Choose among the sounds that may have begun the turn and the pauses in it.

        At `arrival` the turn's words had not changed since byte `last_change` of the socket was
        sent, and the turn was open until byte `open_until`.
        """
        ends = self._pauses(arrival, look_ms, last_change, open_until)
        if begins:
            received = self._received_by(arrival.at, -ONSET_DETECTION_S[1])
            ends = [end for end in ends if end.until < received] or ends
        usual_s = self._provider_lag.seconds
        return best_candidate(
            self._speech_starts(), ends, self._lag_before_s if usual_s is None else usual_s
        ), ends

    def _pauses(
        self, arrival: SendPosition, look_ms: int, last_change: int, open_until: int
    ) -> Sequence[SilenceSpan]:
        """Find the silences that may have caused the message that arrived at `arrival`."""
        look = self._recent_levels(arrival, look_ms)
        first = arrival.socket_bytes - len(look.silent) * self._frame
        earliest_at = self._earliest(arrival.at)
        if self._burst >= MIN_BURST:
            earliest_at = min(earliest_at, self._before_burst_at)
        found = []
        for start, end in silence_spans(look.silent):
            decided = min(start + MIN_END_SILENCE_MS // FRAME_MS, end)
            decided_at = self._sender.send_log.sent_at(first + decided * self._frame)
            over_at = self._sender.send_log.sent_at(first + end * self._frame)
            if decided_at is not None and over_at is not None:
                lasts = end == len(look.silent)
                over_at = arrival.at if lasts else over_at
                found.append(
                    SilenceSpan(
                        sent=first + start * self._frame,
                        least_lag_s=earliest_at - over_at,
                        most_lag_s=arrival.at - decided_at,
                        until=first + end * self._frame,
                        middle=look.positions[(start + end) // 2],
                        begun=start > 0,
                        followed_s=0.0 if lasts or self.waiting else arrival.at - over_at,
                    )
                )
        ends = spans_after_last_word(found, last_change)
        # Unless none is left: a provider may resume a turn without a silence.
        return [pause for pause in ends if pause.sent >= open_until] or ends

    def _speech_starts(self) -> list[SpeechStart]:
        """Return the possible lag at each sound that may have begun the turn."""
        start = self._start
        earliest_at = self._earliest(start.arrived_at)
        # While the lag is unknown, a small burst is not enough evidence of a delay.
        if start.held_up_since and (start.certain or self._provider_lag.seconds is not None):
            earliest_at = start.held_up_since
        return [
            SpeechStart(byte, max(0.0, earliest_at - sent_at), start.arrived_at - sent_at)
            for byte, sent_at in start.sounds
        ]

    def _received_by(self, at: float, more_s: float) -> int:
        """Return the byte of the socket that the provider had received by then.

        `more_s` is added to the usual lag.
        """
        usual_s = self._provider_lag.seconds
        lag_s = (DEFAULT_LAG_S if usual_s is None else usual_s) + more_s
        return self._sender.send_log.moment(at - max(0.0, lag_s)).socket_bytes

    def _earliest(self, at: float) -> float:
        """Return the earliest time at which a message read at `at` may have arrived."""
        self._stalls.tick(time.monotonic())  # the process may have just resumed
        return self._stalls.earliest_arrival(at)

    def _recent_levels(self, arrival: SendPosition, look_ms: int) -> SilenceMap:
        """Return the frames that were last sent by then and are not committed."""
        sender = self._sender
        start = arrival.session_bytes - sender.bytes_of(look_ms)
        first, levels = sender.levels.levels(
            max(self._ledger.committed_bytes, start), arrival.session_bytes
        )
        return timeline(levels, first, self._frame, sender.filler_before(arrival, first))
