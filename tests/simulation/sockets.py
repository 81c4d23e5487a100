"""The providers of a simulated session: their sockets, and what fails at them.

Their protocols and the script engine are real. An event loop with virtual time runs them.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import anyio
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from tests.simulation.provider_model import Delays, Habits, Link, Recognizer
from worker.errors import SttTransientError
from worker.stt.frames import LenientProtocol
from worker.stt.provider import Endpoint, Provider, StreamSettings
from worker.stt.websocket import WebSocketClient

OPEN_TIMEOUT_S = 10.0
"""Time after which a connect without an answer fails."""


class _Transport(asyncio.Transport):
    """The worker's end of the connection to `ProviderSocket`."""

    def __init__(self, provider: "ProviderSocket") -> None:
        super().__init__()
        self._provider = provider

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._provider.send(bytes(data))

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self._provider.later(0, self._provider.cut)

    abort = close


class SimulatedProvider:
    """A provider, and what is wrong with it now."""

    def __init__(
        self,
        provider: Provider,
        rng: random.Random,
        delays: Delays,
        habits: Habits,
    ) -> None:
        self.provider = provider
        self.rng = rng
        self.delays = delays
        self.habits = habits
        self.away = False
        """Whether connects are refused."""
        self.silent = False
        """Whether sockets become half open, and connects get no answer."""
        self.stuck = False
        """Whether sockets get stuck: the provider takes audio, answers pings and sends no message.
        """

    async def connect(self, settings: StreamSettings) -> "ProviderSocket":
        """Open a socket. Raises `SttTransientError` if the provider refuses it or is silent."""
        await anyio.sleep(self.rng.uniform(0.005, 0.05))
        if self.silent:
            await anyio.sleep(OPEN_TIMEOUT_S)
            raise SttTransientError("no answer")
        if self.away:
            raise SttTransientError("HTTP 503", status=503)
        return ProviderSocket(self, settings)


class ProviderSocket:
    """One socket to a provider, and the provider behind it."""

    def __init__(self, simulated: SimulatedProvider, settings: StreamSettings) -> None:
        self.simulated = simulated
        provider = simulated.provider
        self.net_s = simulated.rng.uniform(0.005, 0.03)
        line = LenientProtocol(parse_uri("ws://127.0.0.1/"), state=State.OPEN, max_size=None)
        self.socket = WebSocketClient(line, {})
        self.socket._transport = _Transport(self)
        kind = provider.stream
        self.stream = kind(provider, self.socket, Endpoint("", "", ""), settings)
        self.stream.request_id = "request"
        self.stream.accepted = True
        self._recognizer = Recognizer(provider, settings, simulated.habits)
        self._link = Link(simulated.rng, simulated.delays)
        self._peer = ServerProtocol(state=State.OPEN, max_size=None)
        self._up: deque[bytes] = deque()
        self._down: deque[bytes | None] = deque()
        self._silent = self._stuck = False  # until the worker replaces the socket

    def later(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        asyncio.get_running_loop().call_later(delay_s, act, *args)

    def cut(self) -> None:
        self._up.clear()
        self._down.clear()
        self.socket.connection_lost(None)

    def send(self, data: bytes) -> None:
        self._up.append(data)
        self.later(self.net_s, self._process)

    def _process(self) -> None:
        self._silent = self._silent or self.simulated.silent
        if not self._up or self._silent:
            return  # the socket was lost meanwhile, or is half open
        self._peer.receive_data(self._up.popleft())
        for event in self._peer.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                self._reply(self._recognizer.feed(bytes(event.data)))
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                messages, closes = self._recognizer.command(bytes(event.data).decode())
                self._reply([*messages, None] if closes else messages)
        self._send()

    def _reply(self, replies: Sequence[bytes | None]) -> None:
        now = anyio.current_time()
        for reply in replies:
            stuck = self.simulated.stuck and self._can_get_stuck_at(reply)
            self._stuck = self._stuck or stuck
            if self._stuck:
                return
            self._down.append(reply)
            self.later(self._link.arrival(now) - now, self._deliver)

    def _can_get_stuck_at(self, reply: bytes | None) -> bool:
        """Return whether a worker can detect that nothing follows it."""
        return reply is not None and (self.simulated.provider.word_times or b"turn.update" in reply)

    def _deliver(self) -> None:
        if self._down and not self._silent:
            message = self._down.popleft()
            if message is None:
                self._peer.send_close(1000)
            else:
                self._peer.send_text(message)
            self._send()

    def _send(self) -> None:
        for data in self._peer.data_to_send():
            self.socket.data_received(data)
