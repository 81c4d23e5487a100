"""Calls that begin and end on a schedule, with their events and the owners of their sessions."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import anyio
from redis.asyncio import Redis

from schemas.keys import GROUP, RELEASED, Keys
from schemas.turns import Event, SessionEnded, decode_turn_entry
from tests.support.harness import PCM16
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.engines.script_words import WORD_MS

WORDS: Final = 3
"""Words of a turn."""

_SILENT: Final = 4
"""Silent chunks between two turns."""


@cache
def _chunk(word: int | None) -> bytes:
    """Return a chunk of 200 ms: silence, or a whole word, so that a late producer splits none."""
    return synthesize_silence(WORD_MS, PCM16) if word is None else synthesize_words([word], PCM16)


class Call:
    """One session, from its producer's side."""

    def __init__(self, number: int) -> None:
        self.session: Final = f"call-{number}"
        self.stream: Final = Keys().audio("0", self.session)
        self.chunks = 0
        self.hanging_up = False
        self.over = False

    @property
    def words(self) -> int:
        """Return the number of words spoken so far."""
        turns, rest = divmod(self.chunks, WORDS + _SILENT)
        return turns * WORDS + min(rest, WORDS)

    def next_chunk(self) -> bytes | None:
        """Return the next chunk; None at the end of a turn once the call is to end."""
        turn, at = divmod(self.chunks, WORDS + _SILENT)
        if at == 0 and self.hanging_up and turn:
            return None
        self.chunks += 1
        return _chunk(turn * WORDS + at if at < WORDS else None)


class Calls:
    """Appends the audio of every call in real time, and reads all events."""

    def __init__(self, producer: Redis, consumer: Redis) -> None:
        self._producer = producer
        self._consumer = consumer
        self.calls: Final[list[Call]] = []
        self.events: Final[dict[str, list[Event]]] = {}

    async def begin(self) -> None:
        """Announce one more call."""
        call = Call(len(self.calls))
        self.events[call.session] = []
        announced: dict[Any, Any] = {
            "session": call.session,
            "encoding": PCM16.encoding,
            "sample_rate": str(PCM16.sample_rate),
        }
        await self._producer.xadd(Keys().sessions, announced)
        self.calls.append(call)

    async def speak(self) -> None:
        """Append audio until cancelled."""
        due = anyio.current_time()
        while True:
            async with self._producer.pipeline(transaction=False) as pipe:
                for call in self.calls:
                    if call.over:
                        continue
                    chunk = call.next_chunk()
                    if chunk is None:
                        call.over = True
                        pipe.xadd(call.stream, {"end": "1"})
                    else:
                        pipe.xadd(call.stream, {"audio": chunk})
                await pipe.execute()
            due += WORD_MS / 1000
            await anyio.sleep_until(due)

    async def listen(self) -> None:
        """Read events until cancelled."""
        cursor: Any = "0"
        while True:
            reply: Any = await self._consumer.xread({Keys().turns("0"): cursor}, count=1_000)
            for _, rows in reply:
                for cursor, fields in rows:  # noqa: B007 - the next read begins there
                    event = decode_turn_entry(fields).event
                    self.events[event.session].append(event)
            if not reply:
                await anyio.sleep(0.1)

    @property
    def live(self) -> int:
        """Return the calls whose session has not ended."""
        return sum(not ended(events) for events in self.events.values())


def ended(events: Sequence[Event]) -> bool:
    """Return whether a session has ended."""
    return bool(events) and isinstance(events[-1], SessionEnded)


class Owners:
    """Owner of each session, as observed at each look."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._owner: dict[bytes, str] = {}
        self.moves: Final[list[tuple[str, str]]] = []
        """Worker ids, from and to."""

    async def look(self) -> None:
        """Record the current owners."""
        rows: Any = await self._redis.xpending_range(Keys().sessions, GROUP, "-", "+", 10_000)
        for row in rows:
            consumer = row["consumer"].decode()
            if consumer == RELEASED:
                continue
            worker = consumer.rpartition("-")[0]
            before = self._owner.setdefault(row["message_id"], worker)
            if before != worker:
                self.moves.append((before, worker))
                self._owner[row["message_id"]] = worker
