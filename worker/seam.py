"""The seam between two turns: which of the session's audio a turn that ended covers.

Decides with `worker.core.cut`, on audio read again from Redis: a session keeps nothing it sent.
"""

import time
from typing import Any

from redis.asyncio import Redis

from schemas.audio import SessionEntry
from worker.bus.connection import BusHealth, patiently
from worker.core.cut import (
    LOOK_BACK_MS,
    PAUSE_MS,
    Onset,
    Pause,
    Timeline,
    choose_pair,
    onsets,
    pauses,
    timeline,
)
from worker.core.ledger import Ledger
from worker.core.pcm import FRAME_MS, frame_bytes
from worker.uplink import Moment, Uplink
from worker.wakefulness import Wakefulness


class Seam:
    """Finds the end of each turn's audio on one socket after another."""

    def __init__(
        self,
        redis: Redis,
        health: BusHealth,
        audio_key: str,
        entry: SessionEntry,
        ledger: Ledger,
        uplink: Uplink,
        wakefulness: Wakefulness,
    ) -> None:
        self._redis = redis
        self._health = health
        self._key = audio_key
        self._entry = entry
        self._ledger = ledger
        self._uplink = uplink
        self._wakefulness = wakefulness
        self._frame = frame_bytes(entry.encoding, entry.sample_rate)
        self._onsets: list[Onset] = []  # of the open turn
        self._usual_lag_s: float | None = None  # of the turn before, on this socket

    def reset(self) -> None:
        """Begin on a new socket."""
        self._onsets = []
        self._usual_lag_s = None

    async def turn_started(self, arrival: Moment) -> None:
        """Find the sounds that may have caused the `turn.start` that arrived then."""
        look = await self._look_back(arrival)
        first = arrival.sent - len(look.silent) * self._frame
        self._onsets = []
        for at in onsets(look.silent):
            began = first + at * self._frame
            sent_at = self._uplink.sent_at(began)
            if sent_at is not None:
                self._onsets.append(Onset(began, self._lag_s(sent_at, arrival)))

    async def cut(self, arrival: Moment) -> int:
        """Return the session byte up to which the turn covers the audio whose end arrived then."""
        look = await self._look_back(arrival)
        first = arrival.sent - len(look.silent) * self._frame
        ends = []
        for start, end in pauses(look.silent):
            decided = min(start + PAUSE_MS // FRAME_MS, end)
            decided_at = self._uplink.sent_at(first + decided * self._frame)
            over_at = self._uplink.sent_at(first + end * self._frame)
            if decided_at is not None and over_at is not None:
                over_at = arrival.at if end == len(look.silent) else over_at
                ends.append(
                    Pause(
                        sent=first + start * self._frame,
                        least_lag_s=self._lag_s(over_at, arrival),
                        most_lag_s=self._lag_s(decided_at, arrival),
                        middle=look.positions[(start + end) // 2],
                    )
                )
        pair = choose_pair(self._onsets, ends, self._usual_lag_s)
        if pair is None:
            return max((pause.middle for pause in ends), default=arrival.fed)
        self._usual_lag_s = pair[0].lag_s
        return pair[1].middle

    def _lag_s(self, sent_at: float, arrival: Moment) -> float:
        """Return how late the service was, our own standing still aside."""
        self._wakefulness.look(time.monotonic())  # we may be just awake
        return self._wakefulness.awake_s(sent_at, arrival.at)

    async def _look_back(self, arrival: Moment) -> Timeline:
        """Read again what was sent last by then."""
        width, fed = self._entry.encoding.width, arrival.fed
        start = max(self._ledger.committed_bytes, fed - self._uplink.bytes_of(LOOK_BACK_MS))
        start += -start % width
        fillers = self._uplink.fillers_of(arrival, start)
        pieces = list(self._ledger.pieces(start, fed))
        audio = b""
        if pieces:
            rows: Any = await patiently(
                self._health,
                lambda: self._redis.xrange(self._key, pieces[0].entry, pieces[-1].entry),
            )
            stored = {row.decode(): fields.get(b"audio", b"") for row, fields in rows}
            joined = b"".join(stored.get(piece.entry, b"") for piece in pieces)
            first = pieces[0].start
            audio = joined[start - first : fed - first]
        return timeline(audio, start, fillers, self._entry.encoding, self._entry.sample_rate)
