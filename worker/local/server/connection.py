"""One client's connection after the upgrade: audio in, events out, until one side ends it.

Where the provider's documents are silent, this server chooses: `config` takes effect at once and
is not acknowledged, a wrong one changes nothing and gets an in-band 400; only binary messages, an
empty one too, reset the idle clock; a client that does not read its events is not read from
either; an engine that fails closes the connection with 1011.
"""

import time
from collections import deque
from typing import Final

import anyio
import anyio.abc
from anyio.lowlevel import checkpoint
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from worker.local.engines.base import Engine, EngineEvent, Hearing
from worker.local.server.messages import (
    Config,
    Fault,
    decode_command,
    encode_connected,
    encode_error,
    encode_event,
)
from worker.local.server.params import Params, check_turn
from worker.local.server.turns import TurnOrder

_PIECE: Final = 64 * 1024  # bytes heard in one go: a huge message must not hold up the others
_TRANSCRIPTS_KEPT: Final = 1_000


class Seen:
    """What the server saw of one connection. Times are seconds of `time.monotonic`."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.params: Params | None = None
        """None until they are read, and for ever if they were refused."""
        self.opened_at = time.monotonic()
        self.closed_at: float | None = None
        self.close_code: int | None = None
        self.audio_bytes = 0
        self.audio_messages = 0
        self.first_audio_at: float | None = None
        self.last_audio_at: float | None = None
        self.transcripts: deque[str] = deque(maxlen=_TRANSCRIPTS_KEPT)
        """Of the turns that ended, as sent; the last 1,000."""
        self.open_transcript = ""
        """Of the turn that is open, or was when the connection ended."""

    def hear(self, size: int) -> None:
        """Note an audio message."""
        now = time.monotonic()
        if self.first_audio_at is None:
            self.first_audio_at = now
        self.last_audio_at = now
        self.audio_bytes += size
        self.audio_messages += 1


class Connection:
    """Runs one accepted connection; `close` ends it from outside."""

    def __init__(
        self,
        ws: ServerConnection,
        params: Params,
        seen: Seen,
        engine: Engine,
        idle_timeout_s: float,
    ) -> None:
        self.seen = seen
        self._ws = ws
        self._params = params
        self._turn = params.turn
        self._engine = engine
        self._idle_timeout_s = idle_timeout_s
        self._request_id = seen.request_id
        self._order = TurnOrder()
        self._outbox: deque[EngineEvent] = deque()
        self._filled = anyio.Event()
        self._emptied = anyio.Event()
        self._farewell: tuple[int, str] | None = None
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        """Serve the client to the end and close the socket.

        Raises what the engine raised, for the caller to close with 1011.
        """
        hearing = self._engine.open(
            self._params.audio, self._params.turn, self._params.keyterms, self._emit
        )
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._write)
                    tasks.start_soon(self._watch_idle)
                    await self._read(hearing)
        finally:
            with anyio.CancelScope(shield=True):
                await hearing.aclose()
        code, reason = self._farewell or (CloseCode.NORMAL_CLOSURE, "")
        await self._ws.close(code, reason)

    def close(self, code: int, reason: str) -> None:
        """Stop at once, without flushing; the first call decides what the client is told."""
        self._farewell = self._farewell or (code, reason)
        self._scope.cancel()

    async def _read(self, hearing: Hearing) -> None:
        try:
            await self._ws.send(encode_connected(self._request_id), text=True)
            while True:
                message = await self._ws.recv()
                if isinstance(message, bytes):
                    self.seen.hear(len(message))
                    await self._hear(hearing, message)
                elif await self._obey(hearing, message):
                    break
                await self._sent()
            await hearing.flush()
            await self._sent()
        except ConnectionClosed:
            pass  # the client left; the socket remembers how
        self.close(CloseCode.NORMAL_CLOSURE, "")

    async def _hear(self, hearing: Hearing, audio: bytes) -> None:
        for start in range(0, len(audio), _PIECE):
            if start:
                await checkpoint()
            await hearing.feed(audio[start : start + _PIECE])

    async def _obey(self, hearing: Hearing, text: str) -> bool:
        """Do what a text message says; tell whether it was to close."""
        try:
            command = decode_command(text)
            if not isinstance(command, Config):
                return True
            turn = command.turn.over(self._turn) if command.turn else self._turn
            check_turn(turn)
        except Fault as fault:
            await self._ws.send(encode_error(fault, self._request_id), text=True)
        else:
            self._turn = turn
            hearing.configure(turn)
        return False

    def _emit(self, event: EngineEvent) -> None:
        self._outbox.append(event)
        self._filled.set()

    async def _sent(self) -> None:
        """Wait until every event emitted so far is written."""
        while self._outbox:
            self._emptied = anyio.Event()
            await self._emptied.wait()

    async def _write(self) -> None:
        try:
            while True:
                while self._outbox:
                    await self._send(self._outbox[0])
                    self._outbox.popleft()
                self._emptied.set()
                self._filled = anyio.Event()
                await self._filled.wait()
        except ConnectionClosed:
            self.close(CloseCode.NORMAL_CLOSURE, "")  # the client left

    async def _send(self, event: EngineEvent) -> None:
        self._order.admit(event)
        await self._ws.send(encode_event(event, self._request_id), text=True)
        if event.kind == "turn.end":
            self.seen.transcripts.append(event.transcript or "")
        self.seen.open_transcript = self._order.transcript

    async def _watch_idle(self) -> None:
        # One sleep for many messages is cheaper than a timer reset by each.
        while True:
            last = self.seen.last_audio_at or self.seen.opened_at
            left = last + self._idle_timeout_s - time.monotonic()
            if left <= 0:
                self.close(CloseCode.GOING_AWAY, "Idle timeout")
            await anyio.sleep(max(left, 0))
