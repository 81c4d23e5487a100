"""Consumer of the published events."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from schemas import Keys, decode_turn_entry
from schemas.turns import Event, SessionEnded, TurnEnd
from worker.bus.client.connection import RedisHealth, describe
from worker.errors import BusUnavailableError

_COUNT: Final = 1_000
_POLL_S: Final = 0.1


class EventReader:
    """Reads the turns of some lanes, and passes each event on with the time it was appended.

    That time is in Unix milliseconds of the Redis clock. The reader polls: a blocking read would
    wake Redis and this process for each event.
    """

    def __init__(
        self, redis: Redis, streams: Iterable[str], on_event: Callable[[int, Event], None]
    ) -> None:
        self._redis = redis
        self._cursors: dict[Any, Any] = dict.fromkeys(streams, b"0-0")
        self._on_event = on_event

    async def run(self) -> None:
        """Read until cancelled. Raises BusUnavailable if Redis fails."""
        while True:
            try:
                full = await self.read()
            except RedisError as error:
                raise BusUnavailableError(f"the embedded Redis: {describe(error)}") from error
            if not full:
                await anyio.sleep(_POLL_S)

    async def read(self) -> bool:
        """Read once; return whether more events may be waiting. Raises RedisError."""
        reply: Any = await self._redis.xread(self._cursors, count=_COUNT)
        for stream, entries in reply or ():
            self._cursors[stream.decode()] = entries[-1][0]
            for entry_id, fields in entries:
                self._on_event(int(entry_id.partition(b"-")[0]), decode_turn_entry(fields).event)
        return any(len(entries) == _COUNT for _, entries in reply or ())


class LoggedEvent(NamedTuple):
    """One event, and the time it was appended: Unix milliseconds of the Redis clock."""

    at_ms: int
    event: Event


class EventLog:
    """All events of some lanes; it continues after every outage."""

    def __init__(self, redis: Redis, keys: Keys, lanes: Iterable[str]) -> None:
        self._redis = redis
        self._keys = keys
        self._health = RedisHealth()
        self._reader = EventReader(redis, map(keys.turns, lanes), self._add)
        self._session_ended = anyio.Event()
        self.logged: Final[defaultdict[str, list[LoggedEvent]]] = defaultdict(list)
        """Events by session."""
        self.ended: Final[set[str]] = set()
        """Sessions whose end was published."""
        self.turns = 0
        """Number of ended turns so far."""

    def events(self, session: str) -> list[Event]:
        """Return the events published for a session so far."""
        return [each.event for each in self.logged[session]]

    async def all_ended(self, sessions: set[str]) -> None:
        """Wait until each of these sessions has ended."""
        while not self.ended >= sessions:
            await self._session_ended.wait()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            if not await self._health.retry(self._reader.read):
                await anyio.sleep(_POLL_S / 2)

    async def own(self, lane: str, session: str) -> list[Event]:
        """Return the events of the session's own stream."""
        key = self._keys.session_turns(lane, session)
        rows: Any = await self._health.retry(lambda: self._redis.xrange(key))
        return [decode_turn_entry(fields).event for _, fields in rows]

    def _add(self, at_ms: int, event: Event) -> None:
        self.logged[event.session].append(LoggedEvent(at_ms, event))
        if isinstance(event, SessionEnded):
            self.ended.add(event.session)
            self._session_ended.set()
            self._session_ended = anyio.Event()
        elif isinstance(event, TurnEnd):
            self.turns += 1
