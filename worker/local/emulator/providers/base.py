"""Interface between the STT server and the wire protocol of one provider.

The server, its connections, its write queue and its faults are the same for all providers. A
`Provider` checks upgrades and opens a `Session` for each accepted one. The session translates
between the engine and the wire. It does no I/O; it feeds audio to the stream of its engine.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol

from websockets.datastructures import Headers
from websockets.http11 import Request

from worker.local.emulator.engines.base import EngineEvent, RecognizerStream
from worker.local.emulator.faults import ConnectionEnd
from worker.local.emulator.messages import Problem
from worker.local.emulator.upgrade import Params

Reply = Callable[[], bytes]
"""A message that is encoded when it is written, after all earlier messages."""

Flush = Literal["flush"]
FLUSH: Final[Flush] = "flush"
"""Result of a command that asks the server to send what is left and to close."""


class EngineFault(RuntimeError):  # noqa: N818 - named as in `worker.errors`
    """The engine emitted an event that the protocol does not allow: a defect of the engine."""


class Session(Protocol):
    """The protocol of one connection."""

    @property
    def transcript(self) -> str:
        """Latest transcript of the open turn; empty without one."""
        ...

    def open(self) -> Params:
        """Parse the query. Raises ClientFault if it must be refused in-band."""
        ...

    def encode_greeting(self) -> bytes:
        """Encode the first message."""
        ...

    def encode_error(self, problem: Problem) -> bytes:
        """Encode an in-band error."""
        ...

    def encode_event(self, event: EngineEvent) -> bytes:
        """Encode a turn message, one of those from `admit` or a distorted copy."""
        ...

    def admit(self, event: EngineEvent) -> Sequence[EngineEvent]:
        """Return the turn messages that an engine event causes, in order.

        Raises EngineFault, without a change, if the engine may not emit this event now.
        """
        ...

    async def feed(self, stream: RecognizerStream, audio: bytes) -> None:
        """Pass received audio to the engine."""
        ...

    async def command(
        self, text: str, stream: RecognizerStream, reply: Callable[[Reply], None]
    ) -> ConnectionEnd | Flush | None:
        """Execute a text message; return how it ends the connection, if it does."""
        ...


class Provider(Protocol):
    """The protocol of one provider, with the choices of the server's settings."""

    path: str
    idle_timeout_s: float
    ping_resets_idle: bool
    throttle: float | None
    """Maximum pace at which audio is read, in times real time; None for no maximum."""
    flushed_code: int
    """Code of the close frame after a flush, 1005 for none."""
    idle_code: int
    """Code of the close frame after the idle timeout, 1005 for none."""
    subprotocols: tuple[str, ...]
    """WebSocket subprotocols that the server selects if a client offers them."""

    def problem(self, request: Request) -> Problem | None:
        """Return why an upgrade must be refused; None if it is valid."""
        ...

    def refusal(self, problem: Problem, request: Request, request_id: str) -> tuple[Headers, str]:
        """Return headers and body of the response that refuses an upgrade."""
        ...

    def identify(self, headers: Headers, request_id: str) -> None:
        """Add the request id to the headers of a response."""
        ...

    def session(self, request: Request, request_id: str) -> Session:
        """Create the session of a connection."""
        ...
