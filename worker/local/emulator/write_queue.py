"""Outgoing messages of one connection, written by one task, which enforces the order of events.

            connected
                |
      +------- idle <-------------------+
      |  turn.start                     |
      v                                 |
    speaking -- turn.end ---------------+
      |  ^  turn.update*                |
      |  | turn.resume                  |
      v  | turn.eager_end               |
    eager_ended -- turn.end ------------+

Every transcript of a turn begins with the previous one.
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import anyio
from websockets.asyncio.server import ServerConnection

from worker.local.emulator.connection_stats import ConnectionStats
from worker.local.emulator.engines.base import EngineEvent, EventKind
from worker.local.emulator.fault_plan import ConnectionFaults
from worker.local.emulator.faults import Moment
from worker.local.emulator.messages import encode_connected, encode_event
from worker.local.emulator.settings import ServerSettings

State = Literal["idle", "speaking", "eager_ended"]

TRANSITIONS: Final[dict[tuple[State, EventKind], State]] = {
    ("idle", "turn.start"): "speaking",
    ("speaking", "turn.update"): "speaking",
    ("speaking", "turn.eager_end"): "eager_ended",
    ("speaking", "turn.end"): "idle",
    ("eager_ended", "turn.resume"): "speaking",
    ("eager_ended", "turn.end"): "idle",
}
_BARE: Final[frozenset[EventKind]] = frozenset({"turn.start", "turn.resume"})
_MOMENT_AFTER: Final[dict[EventKind, Moment]] = {
    "turn.update": "mid-turn",
    "turn.end": "between-turns",
}


class EngineFault(RuntimeError):  # noqa: N818 - named as in `worker.errors`
    """The engine emitted an event that the protocol does not allow: a defect of the engine."""


class TurnOrder:
    """Tracks the turn state of one connection."""

    def __init__(self) -> None:
        self.state: State = "idle"
        self.transcript = ""
        """Latest transcript of the open turn; empty while idle."""
        self.turns = 0
        """Number of turns started."""

    def admit(self, event: EngineEvent) -> None:
        """Process the next event. Raises EngineFault, without a change, if it is not allowed."""
        after = TRANSITIONS.get((self.state, event.kind))
        if after is None:
            raise EngineFault(f"{event.kind} while {self.state}")
        if (event.transcript is None) != (event.kind in _BARE):
            raise EngineFault(f"{event.kind} with transcript {event.transcript!r}")
        if event.transcript is not None and not event.transcript.startswith(self.transcript):
            raise EngineFault(f"{event.kind} takes back text already sent")
        self.state = after
        self.turns += event.kind == "turn.start"
        self.transcript = "" if after == "idle" else event.transcript or self.transcript


class WriteQueue:
    """Writes `connected`, then the queued messages; calls `on_moment` at each fault moment.

    `write` raises ConnectionClosed when the client disconnected, and EngineFault.
    """

    def __init__(
        self,
        ws: ServerConnection,
        stats: ConnectionStats,
        plan: ConnectionFaults,
        settings: ServerSettings,
        on_moment: Callable[[Moment], Awaitable[None]],
    ) -> None:
        self.deaf = False
        """Whether received audio is discarded until `connected` is sent."""
        self.greeted: Final = anyio.Event()
        """Set once `connected` is written."""
        self._ws = ws
        self._stats = stats
        self._plan = plan
        self._settings = settings
        self._on_moment = on_moment
        self._order = TurnOrder()
        self._waiting: deque[EngineEvent | bytes] = deque()
        self._filled = anyio.Event()
        self._emptied = anyio.Event()

    def put(self, what: EngineEvent | bytes) -> None:
        """Queue a turn event or an encoded message."""
        self._waiting.append(what)
        self._filled.set()

    async def drained(self) -> None:
        """Wait until the queue is empty."""
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
        await self._on_moment("opened")
        late = self._plan.greeting()
        self.deaf = late.deaf
        if late.delay_s is None:
            await anyio.sleep_forever()
        elif late.delay_s:
            await anyio.sleep(late.delay_s)
        self.deaf = False
        self._stats.greeted_at = time.monotonic()
        await self._ws.send(encode_connected(self._stats.request_id), text=True)
        self.greeted.set()

    async def _send(self, what: EngineEvent | bytes) -> None:
        if isinstance(what, bytes):
            await self._ws.send(what, text=True)
            return
        self._order.admit(what)
        for event in self._plan.distort(what) if self._plan else (what,):
            await self._ws.send(self._encoded(event), text=True)
            if event.kind == "turn.end":
                self._stats.transcripts.append(event.transcript or "")
        self._stats.open_transcript = self._order.transcript
        if moment := _MOMENT_AFTER.get(what.kind):
            await self._on_moment(moment)

    def _encoded(self, event: EngineEvent) -> bytes:
        if not self._settings.leading_space and event.transcript is not None:
            event = EngineEvent(event.kind, event.transcript.removeprefix(" "))
        request_id = self._stats.request_id
        turn_id = f"{request_id}:{self._order.turns}" if self._settings.turn_id else None
        return encode_event(event, request_id, turn_id)
