"""One client's connection after the upgrade: receives audio, sends events.

Where the providers' documentation leaves a choice, this server behaves as follows:

- An empty binary message resets the idle timeout, too.
- The server stops reading from a client that does not read its events.
- If the engine fails, the connection is closed with 1011.
"""

import math
import time
from functools import partial
from typing import Final

import anyio
from anyio.lowlevel import checkpoint
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from worker.local.emulator import tcp
from worker.local.emulator.connection_stats import ConnectionStats
from worker.local.emulator.engines.base import Engine, RecognizerStream
from worker.local.emulator.fault_plan import ConnectionFaults, Throttle
from worker.local.emulator.faults import (
    CloseFrame,
    ConnectionEnd,
    Cut,
    HalfOpen,
    InBandError,
    Moment,
    Stall,
)
from worker.local.emulator.messages import Problem
from worker.local.emulator.providers.base import FLUSH, Provider, Session
from worker.local.emulator.settings import ServerSettings
from worker.local.emulator.upgrade import Params
from worker.local.emulator.write_queue import WriteQueue

_PIECE: Final = 64 * 1024  # maximum bytes fed at once: a huge message must not delay the others


class Connection:
    """Serves one accepted connection; other tasks stop it with `end`."""

    def __init__(
        self,
        ws: ServerConnection,
        provider: Provider,
        session: Session,
        params: Params,
        stats: ConnectionStats,
        plan: ConnectionFaults,
        engine: Engine,
        settings: ServerSettings,
    ) -> None:
        self._ws = ws
        self._provider = provider
        self._session = session
        self._params = params
        self._stats = stats
        self._plan = plan
        self._engine = engine
        self._settings = settings
        self._outgoing = WriteQueue(ws, session, stats, plan, self._apply_faults_at, self._apply)
        self._throttle = (
            Throttle(provider.throttle * params.audio.bytes_per_s) if provider.throttle else None
        )
        self._active_at = stats.opened_at
        self._ending: ConnectionEnd | None = None
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        """Serve the client until the connection ends, then close the socket.

        Engine exceptions propagate; the caller closes with 1011.
        """
        params = self._params
        stream = self._engine.open(params.audio, params.turn, params.keyterms, self._outgoing.put)
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._write)
                    tasks.start_soon(self._watch_clock)
                    await self._read(stream)
        finally:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
        await self._close()

    def end(self, ending: ConnectionEnd) -> None:
        """Stop at once, without flushing.

        The first call decides how the connection ends. A later `Cut` always resets it; any later
        call resets a half-open connection.
        """
        if self._ending is not None:
            if isinstance(ending, Cut) or isinstance(self._ending, HalfOpen):
                tcp.reset(self._ws)
            return
        self._ending = ending
        match ending:
            case Cut("rst"):
                tcp.reset(self._ws)
            case Cut("fin"):
                tcp.end(self._ws)
            case HalfOpen():
                tcp.stop_reading(self._ws)
        self._scope.cancel()

    async def _close(self) -> None:
        match self._ending:
            case Cut():
                await tcp.outlast(self._ws, tcp.GRACE_S)
            case HalfOpen():
                await tcp.outlast(self._ws, self._provider.idle_timeout_s)
            case InBandError(problem, int(code)):
                await self._ws.send(self._session.encode_error(problem), text=True)
                await tcp.close(self._ws, code, problem.title)
            case CloseFrame(code, reason):
                await tcp.close(self._ws, code, reason)

    async def _read(self, stream: RecognizerStream) -> None:
        try:
            while True:
                message = await self._ws.recv()
                if isinstance(message, bytes):
                    await self._receive(stream, message)
                elif await self._handle_command(stream, message):
                    break
                await self._outgoing.drained()
            await self._outgoing.greeted.wait()
            await self._apply_faults_at("flush")
            await stream.flush()
            await self._outgoing.drained()
            await self._apply_faults_at("flushed")
            await self._outgoing.finish()
        except ConnectionClosed:
            pass  # the client disconnected; the socket has the close code
        self.end(CloseFrame(self._provider.flushed_code))

    async def _write(self) -> None:
        try:
            await self._outgoing.write()
        except ConnectionClosed:
            self.end(CloseFrame(CloseCode.NORMAL_CLOSURE))  # the client disconnected

    async def _receive(self, stream: RecognizerStream, audio: bytes) -> None:
        ending = None
        if self._plan:
            if due := self._plan.fault_within(self._stats.audio_bytes, len(audio)):
                received, ending = due
                audio = audio[:received]
            await anyio.sleep(self._plan.read_delay_s(len(audio), time.monotonic()))
        if self._throttle is not None:
            await anyio.sleep(self._throttle.backlog_s(len(audio), time.monotonic()))
        self._stats.add_audio(len(audio))
        self._active_at = time.monotonic()
        if not self._outgoing.deaf and not await self._too_fast(audio):
            for start in range(0, len(audio), _PIECE):
                if start:
                    await checkpoint()
                await self._session.feed(stream, audio[start : start + _PIECE])
        if ending is not None:
            await self._apply(ending)

    async def _too_fast(self, audio: bytes) -> bool:
        """Return whether a pace limit rejects this audio; send the error to the client."""
        if not self._plan:
            return False
        limit = self._plan.too_fast(self._stats.seconds_of(len(audio)), time.monotonic())
        if limit is None:
            return False
        message = f"Send audio at no more than {limit.speed:g} times real time."
        problem = Problem(400, "Audio too fast", message)
        await self._apply(InBandError(problem, limit.close_code))
        return True

    async def _handle_command(self, stream: RecognizerStream, text: str) -> bool:
        """Execute a text message; return whether the connection is to be flushed and closed."""
        if self._settings.text_resets_idle:
            self._active_at = time.monotonic()
        if self._plan and self._plan.ignores(text):
            return False
        result = await self._session.command(text, stream, self._outgoing.put)
        if result is None or result == FLUSH:
            return result == FLUSH
        await self._outgoing.drained()
        await self._apply(result)
        return False

    async def _apply_faults_at(self, moment: Moment) -> None:
        if self._plan and (ending := self._plan.at_moment(moment)):
            await self._apply(ending)

    async def _apply(self, ending: ConnectionEnd) -> None:
        match ending:
            case InBandError(problem, None):
                self._outgoing.put(partial(self._session.encode_error, problem))
                return
            case Stall():
                self._outgoing.stalled = True
                return
        self.end(ending)
        await checkpoint()  # the scope is cancelled: this raises

    async def _watch_clock(self) -> None:
        # One sleep for many messages is cheaper than a timer reset by each.
        session_s = self._settings.max_session_s or math.inf
        while True:
            now = time.monotonic()
            active_at = self._active_at
            if self._provider.ping_resets_idle:
                active_at = max(active_at, tcp.pinged_at(self._ws))
            idle_s = active_at + self._provider.idle_timeout_s - now
            session_left_s = self._stats.opened_at + session_s - now
            if session_left_s <= 0:
                self.end(CloseFrame(CloseCode.GOING_AWAY, "Session limit"))
            elif idle_s <= 0:
                self.end(CloseFrame(self._provider.idle_code, "Idle timeout"))
            await anyio.sleep(max(min(idle_s, session_left_s), 0))
