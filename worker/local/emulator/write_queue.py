"""What the server has to say on one connection, written in order by one task."""

import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from websockets.asyncio.server import ServerConnection

from worker.local.emulator.connection_stats import ConnectionStats
from worker.local.emulator.engines.base import EngineEvent, EventKind
from worker.local.emulator.fault_plan import ConnectionFaults
from worker.local.emulator.faults import Moment
from worker.local.emulator.messages import encode_connected, encode_event
from worker.local.emulator.settings import ServerSettings
from worker.local.emulator.turns import TurnOrder

_MOMENT_AFTER: Final[dict[EventKind, Moment]] = {
    "turn.update": "mid-turn",
    "turn.end": "between-turns",
}


class WriteQueue:
    """Writes `connected`, then what it is given; `meet` is told each moment that passes.

    `write` raises ConnectionClosed when the client left, and EngineFault.
    """

    def __init__(
        self,
        ws: ServerConnection,
        seen: ConnectionStats,
        plan: ConnectionFaults,
        settings: ServerSettings,
        meet: Callable[[Moment], Awaitable[None]],
    ) -> None:
        self.deaf = False
        """Whether audio is not to be heard yet."""
        self.greeted: Final = anyio.Event()
        """Set once `connected` is written."""
        self._ws = ws
        self._seen = seen
        self._plan = plan
        self._settings = settings
        self._meet = meet
        self._order = TurnOrder()
        self._waiting: deque[EngineEvent | bytes] = deque()
        self._filled = anyio.Event()
        self._emptied = anyio.Event()

    def put(self, what: EngineEvent | bytes) -> None:
        """Have this written: a turn event, or a message as it is."""
        self._waiting.append(what)
        self._filled.set()

    async def drained(self) -> None:
        """Wait until all that was put is written."""
        while self._waiting:
            self._emptied = anyio.Event()
            await self._emptied.wait()

    async def write(self) -> None:
        """Write until cancelled."""
        await self._greet()
        while True:
            while self._waiting:
                await self._send(self._waiting[0])
                self._waiting.popleft()
            self._emptied.set()
            self._filled = anyio.Event()
            await self._filled.wait()

    async def _greet(self) -> None:
        await self._meet("opened")
        late = self._plan.greeting()
        self.deaf = late.deaf
        if late.delay_s is None:
            await anyio.sleep_forever()
        elif late.delay_s:
            await anyio.sleep(late.delay_s)
        self.deaf = False
        self._seen.greeted_at = time.monotonic()
        await self._ws.send(encode_connected(self._seen.request_id), text=True)
        self.greeted.set()

    async def _send(self, what: EngineEvent | bytes) -> None:
        if isinstance(what, bytes):
            await self._ws.send(what, text=True)
            return
        self._order.admit(what)
        for event in self._plan.garble(what) if self._plan else (what,):
            await self._ws.send(self._encoded(event), text=True)
            if event.kind == "turn.end":
                self._seen.transcripts.append(event.transcript or "")
        self._seen.open_transcript = self._order.transcript
        if moment := _MOMENT_AFTER.get(what.kind):
            await self._meet(moment)

    def _encoded(self, event: EngineEvent) -> bytes:
        if not self._settings.leading_space and event.transcript is not None:
            event = EngineEvent(event.kind, event.transcript.removeprefix(" "))
        request_id = self._seen.request_id
        turn_id = f"{request_id}:{self._order.turns}" if self._settings.turn_id else None
        return encode_event(event, request_id, turn_id)
