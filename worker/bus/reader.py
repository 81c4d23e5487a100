"""The audio reader: one task that reads the audio streams of every session of a worker.

Streams are read from each session's own cursor, without a consumer group: reading is idempotent.
A session that does not want audio now (its socket is down or slow) is left out; Redis is the
buffer.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import anyio
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from worker.bus.connection import READ_BLOCK_MS, BusHealth, patiently

log = logging.getLogger(__name__)

BLOCKING_KEYS = 100
"""Up to so many keys a read blocks, for latency; a wake-up costs the server more with each key."""

POLL_S = 0.015
"""Pause between polls above that, and the longest between reads that block."""

PAUSE_PER_KEY_S = 0.0002
"""Pause between reads that block, for each session beyond the first: a read that names a hundred
keys should bring more than one chunk."""

PER_KEY = 32
"""Entries of one session per read."""

READ_AT_MOST = 8 * 1024 * 1024
"""Bytes a reply may hold, judged by the largest entry seen lately."""

TYPICAL = 4096
FORGET = 0.99
"""How much of the largest entry is believed in after each round of reads."""

Entries = Sequence[tuple[bytes, Mapping[bytes, bytes]]]


class Listening(Protocol):
    """A session as the reader sees it."""

    @property
    def lane(self) -> str:
        """Its lane: streams of one lane are read in one command."""
        ...

    @property
    def audio_key(self) -> str:
        """Its audio stream."""
        ...

    @property
    def cursor(self) -> str:
        """Entry id after which to read."""
        ...

    @property
    def epoch(self) -> int:
        """Changes whenever the cursor was set back: what was read before is void."""
        ...

    @property
    def wants_audio(self) -> bool:
        """Whether to read for it now."""
        ...

    def feed(self, entries: Entries, now: float) -> None:
        """Take entries that follow the cursor."""
        ...

    def unreadable(self, error: ResponseError) -> None:
        """Learn that its key cannot be read as a stream."""
        ...

    def crashed(self) -> None:
        """Learn that it raised what it should not have."""
        ...


class AudioReader:
    """Reads for every session that was added."""

    def __init__(self, redis: Redis, health: BusHealth) -> None:
        self._redis = redis
        self._health = health
        self._sessions: dict[str, Listening] = {}
        self._wake = anyio.Event()
        self._largest = float(TYPICAL)
        self._turn = 0
        self.polled_at = 0.0
        """When the last complete round of reads began, on the monotonic clock."""

    def add(self, session: Listening) -> None:
        """Read for `session` from now on."""
        self._sessions[session.audio_key] = session
        self.wake()

    def remove(self, session: Listening) -> None:
        """Read for `session` no more."""
        if self._sessions.get(session.audio_key) is session:
            del self._sessions[session.audio_key]

    def wake(self) -> None:
        """Look again at who wants audio."""
        self._wake.set()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            wanting = [session for session in self._sessions.values() if session.wants_audio]
            if not wanting:
                with anyio.move_on_after(READ_BLOCK_MS / 1000):
                    await self._wake.wait()
                self._wake = anyio.Event()
                continue
            began = time.monotonic()
            lanes = _by_lane(wanting)
            block = READ_BLOCK_MS if len(lanes) == 1 and len(wanting) <= BLOCKING_KEYS else None
            for sessions in lanes.values():
                await self._read(sessions, block)
            self.polled_at = began
            pause = min(POLL_S, PAUSE_PER_KEY_S * (len(wanting) - 1)) if block else POLL_S
            await anyio.sleep(max(0.0, pause - (time.monotonic() - began)))

    async def _read(self, sessions: Sequence[Listening], block: int | None) -> None:
        self._turn += 1
        first = self._turn % len(sessions)
        rotated = [*sessions[first:], *sessions[:first]]
        self._largest = max(float(TYPICAL), self._largest * FORGET)
        per_read = max(1, int(READ_AT_MOST / self._largest))
        for at in range(0, len(rotated), per_read):
            await self._read_some(rotated[at : at + per_read], block)

    async def _read_some(self, sessions: Sequence[Listening], block: int | None) -> None:
        asked = {session.audio_key: (session, session.epoch) for session in sessions}
        cursors: dict[Any, Any] = {session.audio_key: session.cursor for session in sessions}
        count = max(1, min(PER_KEY, int(READ_AT_MOST / self._largest / len(sessions))))
        try:
            reply: Any = await patiently(
                self._health, lambda: self._redis.xread(cursors, count=count, block=block)
            )
        except ResponseError as error:
            if len(sessions) == 1:
                sessions[0].unreadable(error)
                return
            # One key that is no stream fails the whole command: find it.
            for session in sessions:
                await self._read_some([session], None)
            return
        now = time.monotonic()
        for key, entries in reply or ():
            session, epoch = asked[key.decode()]
            if session.epoch == epoch and self._sessions.get(session.audio_key) is session:
                self._largest = max(self._largest, *(len(f.get(b"audio", b"")) for _, f in entries))
                try:
                    session.feed(entries, now)
                except Exception:  # a fault of ours must not take the other sessions down
                    log.exception("%s: crashed on what was read", session.audio_key)
                    session.crashed()


def _by_lane(sessions: Iterable[Listening]) -> dict[str, list[Listening]]:
    lanes: dict[str, list[Listening]] = {}
    for session in sessions:
        lanes.setdefault(session.lane, []).append(session)
    return lanes
