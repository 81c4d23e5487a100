"""Outgoing messages of one connection, written by one task in the order of its events."""

import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from websockets.asyncio.server import ServerConnection

from worker.local.emulator import tcp
from worker.local.emulator.connection_stats import ConnectionStats
from worker.local.emulator.engines.base import EngineEvent
from worker.local.emulator.fault_plan import ConnectionFaults
from worker.local.emulator.faults import ConnectionEnd, Moment
from worker.local.emulator.providers.base import Reply, Session


class WriteQueue:
    """Writes the greeting, then the queued messages.

    It calls `on_moment` at each fault moment, and `on_end` where a fault cuts a message.

    `write` raises ConnectionClosed when the client disconnected, and EngineFault.
    """

    def __init__(
        self,
        ws: ServerConnection,
        session: Session,
        stats: ConnectionStats,
        plan: ConnectionFaults,
        on_moment: Callable[[Moment], Awaitable[None]],
        on_end: Callable[[ConnectionEnd], Awaitable[None]],
    ) -> None:
        self.deaf = False
        """Whether received audio is discarded until the greeting is sent."""
        self.stalled = False
        """Whether messages are discarded instead of written."""
        self.greeted: Final = anyio.Event()
        """Set once the greeting is written, or would have been."""
        self._ws = ws
        self._session = session
        self._stats = stats
        self._plan = plan
        self._on_moment = on_moment
        self._on_end = on_end
        self._sent_bytes = 0
        self._waiting: deque[EngineEvent | Reply] = deque()
        self._held: bytes | None = None
        self._filled = anyio.Event()
        self._emptied = anyio.Event()

    def put(self, what: EngineEvent | Reply) -> None:
        """Queue an event of the engine, or a reply."""
        self._waiting.append(what)
        self._filled.set()

    async def drained(self) -> None:
        """Wait until the queue is empty."""
        while self._waiting:
            self._emptied = anyio.Event()
            await self._emptied.wait()

    async def finish(self) -> None:
        """Write the message that a fault holds back; never return if the connection is stalled."""
        await self._release()
        if self.stalled:
            await anyio.sleep_forever()

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
        await self._on_moment("opened")
        late = self._plan.greeting()
        self.deaf = late.deaf
        if late.delay_s is None:
            await anyio.sleep_forever()
        elif late.delay_s:
            await anyio.sleep(late.delay_s)
        self.deaf = False
        self._stats.greeted_at = time.monotonic()
        if not late.skipped:
            await self._write(self._session.encode_greeting())
        self.greeted.set()

    async def _send(self, what: EngineEvent | Reply) -> None:
        if not isinstance(what, EngineEvent):
            await self._write(what())
            return
        for message in self._session.admit(what):
            await self._send_turn(message)

    async def _send_turn(self, message: EngineEvent) -> None:
        encoded: EngineEvent | None = None
        data = b""
        for each in self._plan.distort(message) if self._plan else (message,):
            if each is not encoded:  # a duplicate is the same message again
                encoded, data = each, self._session.encode_event(each)
            if self._held is None and self._plan and self._plan.holds(each):
                self._held = data
                continue
            await self._write(data)
            await self._release()
            if each.kind == "turn.end":
                self._stats.transcripts.append(each.transcript or "")
        self._stats.open_transcript = self._session.transcript
        if moment := _moment_after(message):
            await self._on_moment(moment)

    async def _release(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            await self._write(held)

    async def _write(self, data: bytes) -> None:
        if self.stalled:
            return
        if self._plan and (due := self._plan.cut_within(self._sent_bytes, len(data))):
            part, ending = due
            tcp.write_part(self._ws, data, part)
            await self._on_end(ending)
        await self._ws.send(data, text=True)
        self._sent_bytes += len(data)


def _moment_after(message: EngineEvent) -> Moment | None:
    if message.kind == "turn.update" and message.transcript:
        return "mid-turn"
    return "between-turns" if message.kind == "turn.end" else None
