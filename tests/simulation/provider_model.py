"""A provider of a simulated session: what it sends, and when it arrives.

Its protocol and the script engine are the emulator's. All simulations share this module: the pure
calls, the sessions in virtual time, and, for the delays, the fleets.
"""

import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, NamedTuple, TypeVar, cast

import msgspec
from websockets.datastructures import Headers
from websockets.http11 import Request

from schemas.audio import Encoding
from tests.simulation.speech import AUDIO
from worker.local.emulator.engines.base import EngineEvent
from worker.local.emulator.engines.script import ScriptEngine
from worker.local.emulator.providers import provider_of
from worker.local.emulator.providers.base import FLUSH, Reply
from worker.local.emulator.settings import ServerSettings
from worker.stt.cartesia import CARTESIA
from worker.stt.flux import FLUX
from worker.stt.provider import Provider, StreamSettings

T = TypeVar("T")

RECOVERY_S: Final = 0.05
"""Maximum time after a standstill until a message that it delayed arrives."""

_SERVERS: Final = {
    CARTESIA.name: provider_of(ServerSettings(provider="cartesia")),
    FLUX.name: provider_of(ServerSettings(provider="flux")),
}
_MODELS: Final = {CARTESIA.name: "ink-2", FLUX.name: "flux-general-en"}


# -- When a message arrives.


class Delays(NamedTuple):
    """How late the messages of a provider are."""

    lag_s: float = 0.0
    """Lag of every message."""
    jitter_s: float = 0.0
    """Maximum of what is added to the lag of every message."""
    late_share: float = 0.0
    """Share of single messages that are late."""
    late_s: float = 0.3
    """Mean time by which those are late. Few are late by several times as much."""
    max_late_s: float = float("inf")


ON_TIME: Final = Delays()

Standstills = Sequence[tuple[float, float]]
"""Times from and to which nothing arrives."""


class Link:
    """One direction of a connection: when what is sent arrives. No message overtakes another."""

    def __init__(
        self, rng: random.Random, delays: Delays = ON_TIME, standstills: Standstills = ()
    ) -> None:
        self._rng = rng
        self._delays = delays
        self._standstills = standstills
        self._arrived_at = 0.0

    def arrival(self, at: float) -> float:
        """Return when what is sent at a time arrives. Call it in the order of sending."""
        lag_s, jitter_s, late_share, late_s, max_late_s = self._delays
        rng = self._rng
        if late_share and rng.random() < late_share:
            at += min(rng.expovariate(1 / late_s), max_late_s)
        if jitter_s:
            at += rng.uniform(0, jitter_s)
        at += lag_s
        for begin, end in self._standstills:
            if begin <= at < end:
                at = end + rng.uniform(0, RECOVERY_S)
        self._arrived_at = max(at, self._arrived_at)
        return self._arrived_at


# -- What a provider sends.


class WritingEngine(ScriptEngine):
    """The script engine of a provider that writes words in its own way."""

    def __init__(self, write: Callable[[str], str]) -> None:
        super().__init__()
        self._write = write

    def _reword(self, word: str, connection: int) -> str:
        return self._write(word)


class Habits(NamedTuple):
    """How a provider transcribes."""

    engine: ScriptEngine
    """The engine of all its sockets. It may word a replay differently."""
    end_pause_ms: float = 5_600.0
    """Maximum pause inside a turn."""


class Recognizer:
    """What a provider sends on one socket, as bytes; it knows no time but that of the audio."""

    def __init__(self, provider: Provider, settings: StreamSettings, habits: Habits) -> None:
        server = _SERVERS[provider.name]
        request = Request(f"{server.path}?{provider.stream.query(settings)}", Headers())
        self._session = server.session(request, "request")
        params = self._session.open()
        turn = msgspec.structs.replace(params.turn, end_timeout_ms=habits.end_pause_ms)
        self._stream = habits.engine.open(params.audio, turn, params.keyterms, self._emit)
        self._messages: list[bytes] = []

    def feed(self, audio: bytes) -> list[bytes]:
        """Process audio; return the messages that it causes."""
        at_once(self._session.feed(self._stream, audio))
        return self._taken()

    def command(self, text: str) -> tuple[list[bytes], bool]:
        """Execute a command; return the messages, and whether the socket closes after them."""
        closes = at_once(self._session.command(text, self._stream, self._reply)) == FLUSH
        if closes:
            at_once(self._stream.flush())
        return self._taken(), closes

    def _emit(self, event: EngineEvent) -> None:
        admitted = self._session.admit(event)
        self._messages += map(self._session.encode_event, admitted)

    def _reply(self, reply: Reply) -> None:
        self._messages.append(reply())

    def _taken(self) -> list[bytes]:
        messages, self._messages = self._messages, []
        return messages


class Message(NamedTuple):
    """A message, and when it arrives."""

    at: float
    data: bytes


class ProviderSide:
    """The provider's side of one socket of a pure call."""

    def __init__(self, recognizer: Recognizer, up: Link, down: Link) -> None:
        """`up` is the link to the provider, `down` the one from it."""
        self._recognizer = recognizer
        self._up = up
        self._down = down
        self.messages: deque[Message] = deque()
        """Messages that the worker has not received yet, some of which arrive in the future."""

    def send(self, audio: bytes, at: float) -> None:
        """Send audio to the provider."""
        received_at = self._up.arrival(at)
        for data in self._recognizer.feed(audio):
            self.messages.append(Message(self._down.arrival(received_at), data))


def stream_settings(provider: Provider) -> StreamSettings:
    """Return the settings of a socket for the simulated speech."""
    encoding = Encoding(AUDIO.encoding)
    return StreamSettings(_MODELS[provider.name], encoding, AUDIO.sample_rate)


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends; return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise AssertionError("the engine waited")
