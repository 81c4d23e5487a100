"""The seam between two turns: which of the session's audio a turn that ended covers.

Decides with `worker.core.cut`, on audio read again from Redis: a session keeps nothing it sent.
"""

import time
from typing import Any

from redis.asyncio import Redis

from schemas.audio import SessionEntry
from worker.bus.connection import BusHealth, patiently
from worker.core.cut import (
    LAG_S,
    LOOK_BACK_MS,
    SLACK_S,
    USUAL_LAG_S,
    Timeline,
    choose_cut,
    onset,
    timeline,
)
from worker.core.ledger import Ledger
from worker.core.pcm import frame_bytes
from worker.uplink import Uplink


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
    ) -> None:
        self._redis = redis
        self._health = health
        self._key = audio_key
        self._entry = entry
        self._ledger = ledger
        self._uplink = uplink
        self._frame = frame_bytes(entry.encoding, entry.sample_rate)
        self._lag_s = USUAL_LAG_S
        self._began = 0  # byte of this socket at which the open turn's sound began

    def reset(self) -> None:
        """Begin on a new socket."""
        self._lag_s = USUAL_LAG_S
        self._began = 0

    async def turn_started(self) -> None:
        """Measure how late the service speaks, as `turn.start` arrived just now."""
        now, fed, sent = time.monotonic(), self._uplink.fed, self._uplink.sent
        heard = await self._look_back(fed)
        at = onset(heard.silent)
        self._began = sent
        if at is None:
            return
        self._began = sent - (len(heard.silent) - at) * self._frame
        sent_at = self._uplink.sent_at(self._began)
        if sent_at is not None:
            self._lag_s = min(LAG_S, max(0.0, now - sent_at))

    async def cut(self) -> int:
        """Return the session byte up to which the turn that ended just now covers the audio."""
        now, fed, sent = time.monotonic(), self._uplink.fed, self._uplink.sent
        heard = self._uplink.sent_by(now - self._lag_s + SLACK_S)
        look = await self._look_back(fed)
        frames = len(look.silent)
        cut = choose_cut(
            look.silent,
            began=frames - (sent - self._began) // self._frame,
            heard=frames - (sent - heard) // self._frame,
        )
        return look.positions[cut] if cut < frames else fed

    async def _look_back(self, fed: int) -> Timeline:
        """Read again what was sent last, up to session byte `fed`."""
        width = self._entry.encoding.width
        start = max(self._ledger.committed_bytes, fed - self._uplink.bytes_of(LOOK_BACK_MS))
        start += -start % width
        fillers = [filler for filler in self._uplink.fillers if filler[0] >= start]
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
