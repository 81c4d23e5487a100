"""One turn as it was sent to a provider, and what the provider sent."""

from collections.abc import Sequence
from typing import NamedTuple

from worker.core.levels import FRAME_MS
from worker.core.send_log import SendLog
from worker.core.turn_alignment import Message
from worker.core.turn_boundary import (
    Arrival,
    Burst,
    History,
    find_resume,
    find_start,
    sent_audio,
)
from worker.core.turn_tracker import ProviderInput

Span = tuple[float, float]

ALONE = Burst(float("-inf"), 1, 0)

START, UPDATE, RESUME = ProviderInput.START, ProviderInput.UPDATE, ProviderInput.RESUME
EAGER_END, END = ProviderInput.EAGER_END, ProviderInput.END


class Exchange(NamedTuple):
    """A turn of two sounds and what the provider sent, in seconds since the socket's first byte."""

    sounds: Sequence[Span]
    """In milliseconds. Those after the first two belong to the next turn."""
    messages: Sequence[tuple[ProviderInput, float]]
    """From the turn's start to its end."""
    usual_lag_s: float | None = None
    previous_lag_s: float | None = None
    bytes_per_s: int = 1_000
    """A byte is 1 ms."""
    start_burst: Burst = ALONE
    end_burst: Burst = ALONE

    def _history(self, at: float, burst: Burst, start: Arrival | None) -> History:
        log = SendLog()
        for step in range(int(at * 50) + 1):
            sent_bytes = step * self.bytes_per_s // 50
            log.add(step / 50, sent_bytes, sent_bytes)
        arrival = Arrival(log.moment(at), at, burst)
        frames = range(0, arrival.sent.socket_bytes, FRAME_MS)
        levels = [5_000 * any(begin <= at < end for begin, end in self.sounds) for at in frames]
        audio = sent_audio(levels, 0, FRAME_MS, (), len(frames) * FRAME_MS, log)
        lags_s = (self.usual_lag_s, self.previous_lag_s)
        return History(arrival, audio, start or arrival, (), 0, 0, None, *lags_s)

    @property
    def last(self) -> History:
        """What is known when the turn's end arrives."""
        start = self._history(self.messages[0][1], self.start_burst, None)
        onsets = find_start(start).onsets
        last = self._history(self.messages[-1][1], self.end_burst, start.arrival)
        open_until, eager_end_at = onsets[0].sent, None
        for kind, at in self.messages:
            if kind is RESUME:
                resumed = self._history(at, ALONE, start.arrival)._replace(open_until=open_until)
                open_until = find_resume(resumed)
            if kind in (RESUME, EAGER_END):
                received = last.audio.log.moment(at).socket_bytes
                eager_end_at = received if kind is EAGER_END else None
        before = [float("-inf"), *(at for _, at in self.messages)]
        pairs = zip(self.messages, before, strict=False)
        last_update_at = max(at for kind, at in self.messages if kind is UPDATE)
        return last._replace(
            onsets=onsets,
            last_change=last.audio.log.moment(last_update_at).socket_bytes,
            open_until=open_until,
            eager_end_at=eager_end_at,
            messages=[Message(kind, at, at, at == earlier) for (kind, at), earlier in pairs],
        )
