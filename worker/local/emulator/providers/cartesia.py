"""Cartesia's realtime STT with turn detection. See also `upgrade` and `messages`.

Order of events:

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

Where the provider's documentation leaves a choice, this server behaves as follows:

- `config` takes effect at once, also in an open turn. An invalid `config` changes nothing and
  gets an in-band 400.
- `done` is the same as `close`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal

from websockets.datastructures import Headers
from websockets.frames import CloseCode
from websockets.http11 import Request

from worker.local.emulator.engines.base import EngineEvent, EventKind, RecognizerStream
from worker.local.emulator.messages import (
    ClientFault,
    Config,
    Problem,
    decode_command,
    encode_config_ack,
    encode_connected,
    encode_error,
    encode_event,
)
from worker.local.emulator.providers.base import FLUSH, EngineFault, Flush, Reply
from worker.local.emulator.settings import ServerSettings
from worker.local.emulator.upgrade import PATH, Params, Upgrade, check_turn, parse_params

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


class CartesiaProvider:
    """Checks upgrades; query parameters are checked after the upgrade."""

    path: str = PATH
    ping_resets_idle: bool = False
    throttle: float | None = None
    flushed_code: int = CloseCode.NORMAL_CLOSURE
    idle_code: int = CloseCode.GOING_AWAY
    subprotocols: tuple[str, ...] = ()

    def __init__(self, settings: ServerSettings) -> None:
        self.idle_timeout_s = settings.idle_timeout_s
        self._settings = settings

    def problem(self, request: Request) -> Problem | None:
        """Return why an upgrade must be refused; None if it is valid."""
        return Upgrade(request.path, request.headers).problem(self._settings.api_keys)

    def refusal(self, problem: Problem, request: Request, request_id: str) -> tuple[Headers, str]:
        """Return headers and body of the response that refuses an upgrade."""
        upgrade = Upgrade(request.path, request.headers)
        content_type, body = upgrade.error_body(problem, request_id)
        return Headers({"Content-Type": content_type}), body

    def identify(self, headers: Headers, request_id: str) -> None:
        """Add the request id to the headers of a response."""
        headers["X-Request-Id"] = request_id

    def session(self, request: Request, request_id: str) -> "CartesiaSession":
        """Create the session of a connection."""
        upgrade = Upgrade(request.path, request.headers)
        return CartesiaSession(self._settings, upgrade, request_id)


class CartesiaSession:
    """The protocol of one connection."""

    def __init__(self, settings: ServerSettings, upgrade: Upgrade, request_id: str) -> None:
        self._settings = settings
        self._upgrade = upgrade
        self._request_id = request_id
        self._turn = settings.turn
        self._order = TurnOrder()

    @property
    def transcript(self) -> str:
        """Latest transcript of the open turn; empty without one."""
        return self._order.transcript

    def open(self) -> Params:
        """Parse the query. Raises ClientFault at the first invalid parameter."""
        settings = self._settings
        params = parse_params(self._upgrade.query, settings.turn, settings.models)
        self._turn = params.turn
        return params

    def encode_greeting(self) -> bytes:
        """Encode the first message."""
        return encode_connected(self._request_id)

    def encode_error(self, problem: Problem) -> bytes:
        """Encode an in-band error."""
        return encode_error(problem, self._request_id)

    def encode_event(self, event: EngineEvent) -> bytes:
        """Encode a turn event."""
        if not self._settings.leading_space and event.transcript is not None:
            event = EngineEvent(event.kind, event.transcript.removeprefix(" "))
        turn_id = f"{self._request_id}:{self._order.turns}" if self._settings.turn_id else None
        return encode_event(event, self._request_id, turn_id)

    def admit(self, event: EngineEvent) -> Sequence[EngineEvent]:
        """Return the event itself. Raises EngineFault if it is not in order."""
        self._order.admit(event)
        return (event,)

    async def feed(self, stream: RecognizerStream, audio: bytes) -> None:
        """Pass received audio to the engine."""
        await stream.feed(audio)

    async def command(
        self, text: str, stream: RecognizerStream, reply: Callable[[Reply], None]
    ) -> Flush | None:
        """Execute `close`, `done` or `config`; an invalid message gets an in-band error."""
        try:
            command = decode_command(text)
            if not isinstance(command, Config):
                return FLUSH
            turn = command.turn.over(self._turn) if command.turn else self._turn
            check_turn(turn)
        except ClientFault as fault:
            reply(partial(encode_error, fault.problem, self._request_id))
        else:
            self._turn = turn
            stream.configure(turn)
            if self._settings.config_ack:
                reply(partial(encode_config_ack, turn, self._request_id))
        return None
