"""Consumer of a benchmark: reads every turn event and passes it to the checkers."""

from array import array
from collections import defaultdict
from typing import Any, Final

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from schemas import decode_turn_entry
from worker.bench.checker import WordChecker
from worker.bus.client.connection import describe
from worker.errors import BusUnavailableError

_POLL_S: Final = 0.1
_COUNT: Final = 1_000


class Consumer:
    """Reads the turns of a lane.

    It polls: a blocking read would wake Redis and this process for each event.
    """

    def __init__(self, redis: Redis, stream: str) -> None:
        self._redis = redis
        self._cursors: dict[Any, Any] = {stream: b"0-0"}
        self._stream = stream
        self.tallies: Final[defaultdict[str, WordChecker]] = defaultdict(WordChecker)
        self.appended_ms: Final = array("q")
        """Time each event was appended, by the Redis clock: Unix milliseconds."""

    async def run(self) -> None:
        """Read until cancelled. Raises BusUnavailable if Redis fails."""
        while True:
            try:
                reply: Any = await self._redis.xread(self._cursors, count=_COUNT)
            except RedisError as error:
                raise BusUnavailableError(f"the embedded Redis: {describe(error)}") from error
            entries = reply[0][1] if reply else []
            for entry_id, fields in entries:
                self._cursors[self._stream] = entry_id
                appended_ms = int(entry_id.partition(b"-")[0])
                event = decode_turn_entry(fields).event
                self.appended_ms.append(appended_ms)
                self.tallies[event.session].add(event, appended_ms)
            if len(entries) < _COUNT:
                await anyio.sleep(_POLL_S)
