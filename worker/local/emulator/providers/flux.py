"""Deepgram Flux. See also `flux_request`, `flux_messages` and `flux_turns`.

Where the provider's documentation leaves a choice, this server behaves as follows:

- The end of the audio window is the position before which no word is undecoded. An incomplete word
  is outside of it.
- The window of a turn begins where the one of the turn before ended.
- `ForceEndTurn` ends the turn with the words decoded so far.
- `CloseStream` sends an `Update` for the rest of the audio, also without a turn.
- A close frame has no code, unless `close_code` is set.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec
from websockets.datastructures import Headers
from websockets.http11 import Request

from worker.local.emulator.engines.base import EngineEvent, RecognizerStream
from worker.local.emulator.faults import InBandError
from worker.local.emulator.messages import ClientFault, Problem
from worker.local.emulator.providers.base import FLUSH, Flush, Reply
from worker.local.emulator.providers.flux_messages import (
    CloseStream,
    Configuration,
    Configure,
    FluxEncoder,
    ForceEndTurn,
    decode_command,
    error_code,
)
from worker.local.emulator.providers.flux_request import (
    MULTI,
    PATH,
    FluxParams,
    FluxRequest,
    check_keyterms,
    check_language_hints,
    check_thresholds,
    turn_settings,
)
from worker.local.emulator.providers.flux_turns import FluxTurns
from worker.local.emulator.settings import FluxSettings, ServerSettings
from worker.local.emulator.turn_info import TurnInfo

UPDATE_MS: Final = 250
_RECOGNIZED: Final = ("en",)  # by the engines


class FluxProvider:
    """Checks upgrades, and their query parameters."""

    path: str = PATH
    ping_resets_idle: bool = True
    subprotocols: tuple[str, ...] = ("token", "bearer")

    def __init__(self, settings: ServerSettings) -> None:
        self.idle_timeout_s = settings.flux.idle_timeout_s
        self.throttle = settings.flux.throttle
        self.flushed_code = self.idle_code = settings.flux.close_code
        self._settings = settings.flux
        self._api_keys = settings.api_keys

    def problem(self, request: Request) -> Problem | None:
        """Return why an upgrade must be refused; None if it is valid."""
        return _request(request).problem(self._settings, self._api_keys)

    def refusal(self, problem: Problem, request: Request, request_id: str) -> tuple[Headers, str]:
        """Return headers and body of the response that refuses an upgrade."""
        headers = Headers({"Content-Type": "application/json", "dg-error": problem.message})
        body = {
            "err_code": error_code(problem),
            "err_msg": problem.message,
            "request_id": request_id,
        }
        return headers, msgspec.json.encode(body).decode()

    def identify(self, headers: Headers, request_id: str) -> None:
        """Add the request id to the headers of a response."""
        headers["dg-request-id"] = request_id

    def session(self, request: Request, request_id: str) -> "FluxSession":
        """Create the session of a connection."""
        return FluxSession(self._settings, _request(request), request_id)


def _request(request: Request) -> FluxRequest:
    return FluxRequest(request.path, request.headers)


class FluxSession:
    """The protocol of one connection."""

    def __init__(self, settings: FluxSettings, request: FluxRequest, request_id: str) -> None:
        self._settings = settings
        self._params = params = request.params(settings)
        self._configuration = params.configuration
        self._turns = FluxTurns(eager=_eager(params.configuration))
        self._encoder = FluxEncoder(
            request_id,
            word_times=settings.word_times,
            trigger=settings.trigger,
            languages=_RECOGNIZED if params.model == MULTI else None,
        )
        self._encoder.languages_hinted = params.configuration.language_hints
        audio = params.audio
        width = audio.bytes_per_s // audio.sample_rate
        self._update_bytes = audio.sample_rate * UPDATE_MS // 1000 * width
        self._missing_bytes = self._update_bytes  # until the next update

    @property
    def transcript(self) -> str:
        """Latest transcript of the open turn; empty without one."""
        return self._turns.text

    def open(self) -> FluxParams:
        """Return the parameters, which were checked at the upgrade."""
        return self._params

    def encode_greeting(self) -> bytes:
        """Encode `Connected`."""
        return self._encoder.connected()

    def encode_error(self, problem: Problem) -> bytes:
        """Encode an `Error`."""
        return self._encoder.error(problem)

    def encode_event(self, event: EngineEvent) -> bytes:
        """Encode a `TurnInfo`, or the `Warning` about a `ForceEndTurn` without a turn."""
        if isinstance(event, TurnInfo):
            return self._encoder.turn_info(event)
        return self._encoder.warning(
            "FORCE_END_TURN_NO_ACTIVE_TURN", "There is no active turn to end."
        )

    def admit(self, event: EngineEvent) -> Sequence[EngineEvent]:
        """Return the messages that an event of the engine causes."""
        return self._turns.admit(event)

    async def feed(self, stream: RecognizerStream, audio: bytes) -> None:
        """Pass received audio to the engine, and ask it for progress at each update."""
        at = 0
        while at < len(audio):
            part = audio[at : at + self._missing_bytes]
            at += len(part)
            await stream.feed(part)
            self._missing_bytes -= len(part)
            if self._missing_bytes == 0:
                self._missing_bytes = self._update_bytes
                stream.report()

    async def command(
        self, text: str, stream: RecognizerStream, reply: Callable[[Reply], None]
    ) -> InBandError | Flush | None:
        """Execute a command; any other text is a fatal error."""
        try:
            command = decode_command(text, force_end_turn=self._settings.force_end_turn)
        except ClientFault as fault:
            return InBandError(fault.problem, self._settings.close_code)
        match command:
            case CloseStream():
                stream.report()
                return FLUSH
            case ForceEndTurn():
                await stream.end_turn()
            case Configure():
                self._configure(command, stream, reply)
        return None

    def _configure(
        self, command: Configure, stream: RecognizerStream, reply: Callable[[Reply], None]
    ) -> None:
        try:
            changed = _merge(self._configuration, command, self._params.model)
        except ClientFault as fault:
            problem = fault.problem
            reply(partial(self._encoder.not_configured, error_code(problem), problem.message))
            return
        self._configuration = changed
        self._turns.eager = _eager(changed)
        self._encoder.languages_hinted = changed.language_hints
        stream.configure(turn_settings(changed.thresholds))
        reply(partial(self._encoder.configured, changed))


def _eager(configuration: Configuration) -> bool:
    return configuration.thresholds.eager_eot_threshold is not None


def _merge(now: Configuration, command: Configure, model: str) -> Configuration:
    """Return the configuration after a command. Raises ClientFault if a value is invalid."""
    given = msgspec.structs.asdict(command.thresholds) if command.thresholds else {}
    changes = {name: value for name, value in given.items() if value is not None}
    thresholds = check_thresholds(msgspec.structs.replace(now.thresholds, **changes))
    keyterms = now.keyterms if command.keyterms is None else command.keyterms
    hints = now.language_hints if command.language_hints is None else command.language_hints
    numerals = now.numerals if command.numerals is None else command.numerals
    return Configuration(
        thresholds, check_keyterms(keyterms), check_language_hints(hints, model), numerals
    )
