"""The control channel of `turnbus dev`: a WebSocket by which the console page breaks parts.

The page sends `{"do": "kill" | "cut" | "outage", "session": ID}`. It receives what runs, twice a
second and after each change, and `{"did": ...}` or `{"error": ...}` for each message.
"""

from typing import Final, Literal

import anyio
import msgspec

from schemas.audio import SessionId
from worker.errors import TurnbusError
from worker.ingest.http import Exchange, WebSocket, WebSocketClosedError
from worker.local.dev.environment import DevEnvironment

STATE_S: Final = 0.5
"""Interval between two messages of what runs."""

Fault = Literal["kill", "cut", "outage"]


class _Command(msgspec.Struct, forbid_unknown_fields=True):
    do: Fault
    session: SessionId | Literal[""] = ""


class _Did(msgspec.Struct, omit_defaults=True):
    did: Fault
    worker: str = ""


class _Error(msgspec.Struct):
    error: str


_decoder = msgspec.json.Decoder(_Command)


class Control:
    """Serves the channel to any number of pages."""

    def __init__(self, environment: DevEnvironment) -> None:
        self._environment = environment

    async def handle(self, exchange: Exchange) -> None:
        """Serve one page until it leaves."""
        socket = await exchange.accept()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send_states, socket, tasks.cancel_scope)
            try:
                while True:
                    await self._answer(socket, await socket.receive())
            except WebSocketClosedError:
                tasks.cancel_scope.cancel()

    async def _send_states(self, socket: WebSocket, over: anyio.CancelScope) -> None:
        try:
            while True:
                await _send(socket, await self._environment.state())
                with anyio.move_on_after(STATE_S):
                    await self._environment.changed()
        except WebSocketClosedError:
            over.cancel()

    async def _answer(self, socket: WebSocket, message: str | bytes) -> None:
        try:
            command = _decoder.decode(message)
            did = await self._break(command)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            await _send(socket, _Error('a message is {"do": "kill" | "cut" | "outage"}'))
        except TurnbusError as error:
            await _send(socket, _Error(str(error)))
        else:
            await _send(socket, did)

    async def _break(self, command: _Command) -> _Did:
        match command.do:
            case "kill":
                return _Did("kill", await self._environment.kill(command.session))
            case "cut":
                await self._environment.cut()
            case "outage":
                await self._environment.begin_outage()
        return _Did(command.do)


async def _send(socket: WebSocket, message: msgspec.Struct) -> None:
    await socket.send(msgspec.json.encode(message).decode())
