"""Event log of a chaos run: every published event, as a consumer reads it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import anyio
from redis.asyncio import Redis

from schemas import Keys, decode_turn_entry
from schemas.turns import Event, SessionEnded, TurnEnd
from worker.bus.client.connection import RedisHealth

_POLL_S: Final = 0.05
_COUNT: Final = 1_000


class LoggedEvent(NamedTuple):
    """One event, and the time it was appended: Unix milliseconds of the Redis clock."""

    at_ms: int
    event: Event


class EventLog:
    """Reads the turns of some lanes, and continues after every outage."""

    def __init__(self, redis: Redis, keys: Keys, lanes: Sequence[str]) -> None:
        self._redis = redis
        self._keys = keys
        self._lanes = lanes
        self._health = RedisHealth()
        self.logged: Final[defaultdict[str, list[LoggedEvent]]] = defaultdict(list)
        """Events by session."""
        self.ended: Final[set[str]] = set()
        """Sessions whose end was published."""
        self._grown = anyio.Event()
        self.turns = 0
        """Number of ended turns so far."""

    def events(self, session: str) -> list[Event]:
        """Return the events published for a session."""
        return [each.event for each in self.logged[session]]

    async def all_ended(self, sessions: set[str]) -> None:
        """Wait until each of these sessions has ended."""
        while not self.ended >= sessions:
            await self._grown.wait()

    async def run(self) -> None:
        """Read until cancelled."""
        cursors: dict[Any, Any] = {self._keys.turns(lane): b"0-0" for lane in self._lanes}
        while True:
            reply: Any = await self._health.retry(lambda: self._redis.xread(cursors, count=_COUNT))
            for stream, entries in reply or ():
                cursors[stream.decode()] = entries[-1][0]
                for entry_id, fields in entries:
                    self._take(int(entry_id.partition(b"-")[0]), decode_turn_entry(fields).event)
            await anyio.sleep(_POLL_S)

    async def own(self, lane: str, session: str) -> list[Event]:
        """Return the events of the session's own stream."""
        key = self._keys.session_turns(lane, session)
        rows: Any = await self._health.retry(lambda: self._redis.xrange(key))
        return [decode_turn_entry(fields).event for _, fields in rows]

    def _take(self, at_ms: int, event: Event) -> None:
        self.logged[event.session].append(LoggedEvent(at_ms, event))
        if isinstance(event, SessionEnded):
            self.ended.add(event.session)
            self._grown.set()
            self._grown = anyio.Event()
        elif isinstance(event, TurnEnd):
            self.turns += 1
