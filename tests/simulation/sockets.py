"""The providers of a simulated session: their sockets, and what fails at them.

Their protocols and the script engine are real. An event loop with virtual time runs them.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import anyio
import msgspec
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from schemas import cartesia
from tests.simulation.calls import AUDIO
from tests.simulation.lives import at_once
from worker.errors import SttTransientError
from worker.local.emulator.engines.base import EngineEvent, TurnSettings
from worker.local.emulator.engines.script import ScriptStream
from worker.local.emulator.engines.script_words import WORD_MS
from worker.local.emulator.providers.base import FLUSH
from worker.local.emulator.providers.flux import FluxSession
from worker.local.emulator.providers.flux_request import PATH, FluxRequest
from worker.local.emulator.settings import FluxSettings
from worker.stt.flux import FLUX
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


class _Protocol(Protocol):
    """What the provider behind a socket sends, as text."""

    def feed(self, audio: bytes) -> list[bytes]:
        """Process audio; return the messages that it causes."""
        ...

    def command(self, text: str) -> tuple[list[bytes], bool]:
        """Execute a command; return the messages, and whether the socket closes after them."""
        ...


class _Turns:
    """Cartesia's protocol."""

    def __init__(self, habits: "Habits") -> None:
        self._events: list[EngineEvent] = []
        self._engine = habits.engine(self._events.append)

    def feed(self, audio: bytes) -> list[bytes]:
        at_once(self._engine.feed(audio))
        return self._messages()

    def command(self, text: str) -> tuple[list[bytes], bool]:  # `close`
        at_once(self._engine.flush())
        return self._messages(), True

    def _messages(self) -> list[bytes]:
        messages = [msgspec.json.encode(_message_of(event)) for event in self._events]
        self._events.clear()
        return messages


class _Flux:
    """Flux's protocol: every message has times."""

    def __init__(self, habits: "Habits", query: str) -> None:
        request = FluxRequest(f"{PATH}?{query}", Headers({"Authorization": "Token any"}))
        self._session = FluxSession(FluxSettings(), request, "request")
        self._messages: list[bytes] = []
        self._engine = habits.engine(self._emit)

    def _emit(self, event: EngineEvent) -> None:
        admitted = self._session.admit(event)
        self._messages += [self._session.encode_event(each) for each in admitted]

    def feed(self, audio: bytes) -> list[bytes]:
        at_once(self._session.feed(self._engine, audio))
        return self._taken()

    def command(self, text: str) -> tuple[list[bytes], bool]:
        messages = self._messages
        running = self._session.command(text, self._engine, lambda reply: messages.append(reply()))
        closes = at_once(running) == FLUSH
        if closes:
            at_once(self._engine.flush())
        return self._taken(), closes

    def _taken(self) -> list[bytes]:
        messages = self._messages.copy()
        self._messages.clear()
        return messages


class Habits(NamedTuple):
    """How a provider transcribes."""

    end_pause_ms: float = 5_600.0
    """Maximum pause inside a turn."""
    write: Callable[[str], str] = str
    """How it writes a word."""

    def engine(self, emit: Callable[[EngineEvent], None]) -> ScriptStream:
        """Return the recognizer of a socket."""
        turn = TurnSettings(end_timeout_ms=self.end_pause_ms)
        return ScriptStream(AUDIO, turn, WORD_MS, emit, self.write, None)


class SimulatedProvider:
    """A provider, and what is wrong with it now."""

    def __init__(
        self, provider: Provider, rng: random.Random, lag_s: float, late_s: float = 0.0
    ) -> None:
        """`lag_s` is its usual lag; single messages are up to `late_s` later.

        Without times of words a worker does not tolerate late messages, so there are none then.
        """
        self.provider = provider
        self.rng = rng
        self.lag_s = lag_s
        self.late_s = late_s if provider.word_times else 0.0
        self.habits = Habits()
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
        habits = simulated.habits
        self._protocol: _Protocol = (
            _Flux(habits, kind.query(settings)) if provider is FLUX else _Turns(habits)
        )
        self._peer = ServerProtocol(state=State.OPEN, max_size=None)
        self._up: deque[bytes] = deque()
        self._down: deque[bytes | None] = deque()
        self._sent_at = 0.0
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
                self._reply(self._protocol.feed(bytes(event.data)))
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                messages, closes = self._protocol.command(bytes(event.data).decode())
                self._reply([*messages, None] if closes else messages)
        self._send()

    def _reply(self, replies: Sequence[bytes | None]) -> None:
        simulated, rng, now = self.simulated, self.simulated.rng, anyio.current_time()
        for reply in replies:
            self._stuck = self._stuck or (simulated.stuck and self._can_get_stuck_at(reply))
            if self._stuck:
                return
            self._down.append(reply)
            lag_s = simulated.lag_s + rng.uniform(0, 0.05)
            if simulated.late_s and rng.random() < 0.03:
                lag_s += rng.uniform(0, simulated.late_s)
            self._sent_at = max(now + lag_s, self._sent_at + 0.00005)
            self.later(self._sent_at - now, self._deliver)

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


def _message_of(event: EngineEvent) -> cartesia.ServerMessage:
    text: Any = {} if event.transcript is None else {"transcript": event.transcript}
    return cartesia.KNOWN[event.kind](**text)
