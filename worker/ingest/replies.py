"""Turn events of a call, sent back on its own socket.

A socket that returns to its call gets what was published since the last event that was sent.
"""

from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

import anyio
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError
from websockets.frames import CloseCode

from schemas import Keys, SessionEntry
from worker.ingest.calls import Call
from worker.ingest.events import EventHub, ViewerClosedError
from worker.ingest.http import WebSocket, WebSocketClosedError

POSITION_TIMEOUT_S: Final = 1.0
"""Maximum time to read the position at which a new call's events begin; Redis may be away."""


class Opened(msgspec.Struct, frozen=True, tag_field="type", tag="ingest.opened"):
    """The first message: the gateway took the call."""

    sessions: list[str]


class Replies:
    """Sends events back. It remembers the position of each call that goes on."""

    def __init__(self, hub: EventHub, redis: Redis, keys: Keys) -> None:
        self._hub = hub
        self._redis = redis
        self._keys = keys
        self._open = 0
        self._idle = anyio.Event()
        self._sent: WeakKeyDictionary[Call, dict[str, str]] = WeakKeyDictionary()

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count a socket, for which `sent` waits, during a block."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            self._idle.set()

    async def sent(self) -> None:
        """Wait until no socket gets events any more."""
        while self._open:
            self._idle = anyio.Event()
            await self._idle.wait()

    async def send(self, socket: WebSocket, call: Call) -> bool:
        """Send the events of a call; return whether each of its sessions has ended.

        Returns False once the socket is closed, also because its peer is too slow.
        """
        positions = self._sent.setdefault(call, {})
        for entry in call.sessions:
            if entry.session not in positions and (newest := await self._newest(entry.lane)):
                positions[entry.session] = newest
        is_over = True
        opened = Opened([entry.session for entry in call.sessions])
        try:
            await socket.send(msgspec.json.encode(opened).decode())
            async with anyio.create_task_group() as tasks:
                for entry in call.sessions:
                    tasks.start_soon(self._send_one, socket, entry, positions)
        except* ViewerClosedError as errors:
            is_over = False
            await socket.close(CloseCode.TRY_AGAIN_LATER, str(errors.exceptions[0]))
        except* WebSocketClosedError:
            is_over = False
        return is_over

    async def _send_one(
        self, socket: WebSocket, entry: SessionEntry, positions: dict[str, str]
    ) -> None:
        after = positions.get(entry.session)
        async with aclosing(self._hub.viewer(entry.session, entry.lane, after)) as viewer:
            async for event in viewer:
                await socket.send(event.data.decode())
                positions[entry.session] = event.entry_id

    async def _newest(self, lane: str) -> str | None:
        """Return the id of the newest event of a lane; None if it is unknown."""
        with anyio.move_on_after(POSITION_TIMEOUT_S):
            try:
                found: Any = await self._redis.xrevrange(self._keys.turns(lane), count=1)
            except RedisError:
                return None
            return found[0][0].decode() if found else "0-0"
        return None
