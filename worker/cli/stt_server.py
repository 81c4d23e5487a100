"""`turnbus stt-server`: the local turns server, in place of a provider."""

import signal
import textwrap
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

import anyio
from msgspec import Meta
from websockets.frames import EXTERNAL_CLOSE_CODES

from worker.cli.command import Command, Option, run_async
from worker.errors import SettingsError
from worker.local.emulator.control import serve_control
from worker.local.emulator.engines.base import Engine, TurnSettings
from worker.local.emulator.engines.script_text import DEFAULT_STYLE, STYLES
from worker.local.emulator.faults import GRAMMAR, parse_fault
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import FluxSettings, ServerSettings
from worker.urls import check_host

_DEFAULTS: Final = ServerSettings()
_ONLY: Final = {
    "cartesia": (
        *("older_defaults", "refuse_in_band", "turn_id", "config_ack", "no_leading_space"),
        "text_resets_idle",
    ),
    "flux": (
        *("no_word_times", "no_trigger", "no_force_end_turn", "any_rate", "throttle"),
        "close_code",
    ),
}
"""Options of one provider only."""
_OLDER_DEFAULTS: Final = TurnSettings(eager_end=0.4, end=0.2)

_HELP = f"""\
Serve the wire protocol of Cartesia's realtime STT with turn detection, or of Deepgram Flux, on this
machine, without a key or a network. The speech engine recognizes English speech. The script engine
decodes word numbers that are encoded in the audio, for tests and load.

Where Cartesia's documentation is silent, this server has these defaults, and options for them:
  - model, audio format, thresholds and keyterms are checked after the upgrade: the server sends an
    error instead of connected and closes with 1008; credentials, version and the connection limit
    are checked at the upgrade and rejected with an HTTP status (--refuse-in-band)
  - default thresholds are 0.8 to start, 0.6 to eager_end, 0.3 to end, within 5600 ms
    (--older-defaults); eager_end may be up to 0.8
  - config takes effect at once, also in an open turn, without a reply (--config-ack); an invalid
    one gets an in-band 400 and changes nothing
  - done does the same as close
  - the transcript of a later turn begins with a space (--no-leading-space)
  - turn events have no turn_id (--turn-id)
  - audio sent before connected is transcribed (--fault connected=late:1s:deaf)
  - only audio resets the idle timeout, neither pings nor text (--text-resets-idle)
  - audio may arrive at any speed (--fault pace=1.5), messages up to 16 MiB (--max-message-bytes)
  - session length is unlimited (--max-session-s); credentials are not checked again
  - it answers pings and sends none (--ping-s); it declines compression
  - after an in-band 5xx it closes with 1011 (--fault error=500:1013@mid-turn)
  - sample rates are 8000 to 192000 Hz with any encoding

Where Deepgram's documentation of Flux is silent:
  - words have times (--no-word-times) and ends of turns a trigger (--no-trigger)
  - ForceEndTurn is known (--no-force-end-turn)
  - only the documented sample rates are accepted (--any-rate), in linear16, linear32, mulaw or alaw
  - audio may arrive at any speed (--throttle 1.25)
  - it closes without a code, after CloseStream, an Error and 60 s without audio or ping
    (--close-code)
  - audio_window_end excludes a word that is not decoded yet

Faults, injected only with --fault or the control port:
{textwrap.indent(GRAMMAR, "  ")}

examples:
  turnbus stt-server
  turnbus stt-server --engine script --latency-ms 150 --max-connections 20
  turnbus stt-server --fault cut@mid-turn,p=0.2 --fault http=503,count=3 --control-port 8766
  turnbus stt-server --provider flux --engine script --fault stall@mid-turn,p=0.1
  TURNBUS_STT_URL=ws://127.0.0.1:8765/stt/turns/websocket CARTESIA_API_KEY=any turnbus run"""

_Fault = partial(Option, group="faults")
_Choice = partial(Option, group="undocumented provider behavior")
Port = Annotated[int, Meta(ge=0, le=65_535)]
Seconds = Annotated[float, Meta(gt=0)]


def _host(text: str) -> str:
    check_host(text)
    return text


class SttServer(Command):  # noqa: D101 - in `_HELP`
    __doc__ = _HELP

    provider: Annotated[
        Literal["cartesia", "flux"], Option("provider whose protocol is served")
    ] = "cartesia"
    host: Annotated[str, Option("address to listen on", parse=_host)] = "127.0.0.1"
    port: Annotated[Port, Option("port to listen on, 0 for any that is free")] = 8765
    engine: Annotated[Literal["speech", "script"], Option("speech engine to use")] = "speech"
    api_key_file: Annotated[
        Path | None,
        Option("accepted keys and access tokens, one per line (default: any)", "FILE", parse=Path),
    ] = None
    max_connections: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Option(
            "maximum open sockets; further upgrades are rejected with 429, as by a plan's limit "
            "(default: no limit)",
            "N",
        ),
    ] = None
    idle_timeout_s: Annotated[
        Seconds | None,
        Option(
            "seconds without audio (flux: or ping) after which a connection is closed "
            "(default 180, flux 60)",
            "S",
        ),
    ] = None
    latency_ms: Annotated[
        Annotated[float, Meta(ge=0, le=60_000)] | None,
        Option("script engine: extra event latency in milliseconds (default 0)", "MS"),
    ] = None
    text_style: Annotated[
        str | None,
        Option(
            "script engine: separators between the words of a transcript "
            f"(default {DEFAULT_STYLE}: spaces, and one before a later turn)",
            choices=STYLES,
            parse=str,
        ),
    ] = None
    fault: Annotated[
        tuple[str, ...], _Fault("fault to inject, see above; may be repeated", "SPEC", parse=str)
    ] = ()
    seed: Annotated[
        int, Meta(ge=0), _Fault("random seed that selects the connections of a fault with p")
    ] = 0
    control_port: Annotated[
        Port | None,
        _Fault(
            "on 127.0.0.1, 0 for any that is free: GET / and /connections report its state; "
            "/faults/set?fault=SPEC, /faults/clear, /outage/start?how=refuse&for=30s (or how=503), "
            "/outage/stop and /cut act at once (default: none)",
            "PORT",
        ),
    ] = None
    model: Annotated[
        tuple[str, ...],
        _Choice(
            "a model to serve, with its dated snapshots; may be repeated (default ink-2; flux: "
            "flux-general-en and flux-general-multi, without snapshots)",
            "NAME",
            parse=str,
        ),
    ] = ()
    older_defaults: Annotated[
        bool,
        _Choice("default thresholds are 0.4 to eager_end and 0.2 to end, as the SDK documents"),
    ] = False
    refuse_in_band: Annotated[
        bool,
        _Choice(
            "reject bad credentials, a bad version and excess connections by an error and close "
            "1008"
        ),
    ] = False
    turn_id: Annotated[bool, _Choice("add a turn_id to turn events, as observed live")] = False
    config_ack: Annotated[
        bool, _Choice("reply to config with the resulting settings, in the same form")
    ] = False
    no_leading_space: Annotated[
        bool, _Choice("begin the transcript of a later turn without a separating space")
    ] = False
    text_resets_idle: Annotated[bool, _Choice("let text reset the idle timeout too")] = False
    max_session_s: Annotated[
        Seconds | None, _Choice("close a connection of this age with 1001 (default: never)", "S")
    ] = None
    max_message_bytes: Annotated[
        int, Meta(ge=1_024), _Choice("close with 1009 on a larger message", "N")
    ] = 16 * 2**20
    ping_s: Annotated[
        Seconds | None,
        _Choice(
            "ping interval, and timeout for the pong; close with 1011 then (default: never)", "S"
        ),
    ] = None

    no_word_times: Annotated[bool, _Choice("flux: words have no times")] = False
    no_trigger: Annotated[bool, _Choice("flux: ends of turns have no trigger")] = False
    no_force_end_turn: Annotated[
        bool, _Choice("flux: ForceEndTurn is an unparsable message, as to older deployments")
    ] = False
    any_rate: Annotated[bool, _Choice("flux: accept sample rates from 8000 to 192000 Hz")] = False
    throttle: Annotated[
        Annotated[float, Meta(ge=1)] | None,
        _Choice("flux: read audio at no more than X times real time (default: no limit)", "X"),
    ] = None
    close_code: Annotated[
        Annotated[int, Meta(ge=1000, le=4999)] | None,
        _Choice("flux: code of the server's close frames (default: none)", "CODE"),
    ] = None

    def run(self) -> int:
        """Serve until interrupted. Raises TurnbusError without a free port or a recognizer."""
        if self.latency_ms is not None and self.engine != "script":
            raise SettingsError(
                ["--latency-ms requires --engine script; speech has its own latency"]
            )
        if self.text_style is not None and self.engine != "script":
            raise SettingsError(["--text-style requires --engine script"])
        self._check_provider()
        for spec in self.fault:
            parse_fault(spec)  # report an invalid one before loading the recognizer
        settings = ServerSettings(
            host=self.host,
            port=self.port,
            api_keys=_read_keys(self.api_key_file),
            max_connections=self.max_connections,
            provider=self.provider,
            flux=self._flux(),
            models=self.model or _DEFAULTS.models,
            idle_timeout_s=self.idle_timeout_s or _DEFAULTS.idle_timeout_s,
            turn=_OLDER_DEFAULTS if self.older_defaults else TurnSettings(),
            refuse_in_band=self.refuse_in_band,
            turn_id=self.turn_id,
            config_ack=self.config_ack,
            leading_space=not self.no_leading_space,
            text_resets_idle=self.text_resets_idle,
            max_session_s=self.max_session_s,
            max_message=self.max_message_bytes,
            ping_s=self.ping_s,
        )
        run_async(partial(_serve, settings, _engine(self), self))
        return 0

    def _check_provider(self) -> None:
        """Raise SettingsError if an option belongs to the other provider."""
        other = "cartesia" if self.provider == "flux" else "flux"
        for option in _ONLY[other]:
            if getattr(self, option):
                name = option.replace("_", "-")
                raise SettingsError([f"--{name} requires --provider {other}"])
        code = self.close_code
        if code is not None and code not in EXTERNAL_CLOSE_CODES and code < 3000:
            raise SettingsError([f"--close-code {code} cannot be in a close frame"])

    def _flux(self) -> FluxSettings:
        return FluxSettings(
            models=self.model or _DEFAULTS.flux.models,
            idle_timeout_s=self.idle_timeout_s or _DEFAULTS.flux.idle_timeout_s,
            word_times=not self.no_word_times,
            trigger=not self.no_trigger,
            force_end_turn=not self.no_force_end_turn,
            any_rate=self.any_rate,
            throttle=self.throttle,
            close_code=self.close_code or _DEFAULTS.flux.close_code,
        )


def _engine(options: SttServer) -> Engine:
    # Imported on demand: the recognizer takes memory and time to load.
    if options.engine == "script":
        from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions

        return ScriptEngine(
            ScriptOptions(
                latency_ms=options.latency_ms or 0.0,
                text_style=options.text_style or DEFAULT_STYLE,
            )
        )
    from worker.local.emulator.engines.speech import SpeechEngine

    return SpeechEngine()


def _read_keys(path: Path | None) -> frozenset[str] | None:
    if path is None:
        return None
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise SettingsError([f"--api-key-file {path}: {error.strerror}"]) from error
    except UnicodeDecodeError:
        raise SettingsError([f"--api-key-file {path}: is not UTF-8 text"]) from None
    keys = frozenset(line.strip() for line in lines if line.strip())
    if not keys:
        raise SettingsError([f"--api-key-file {path}: contains no key"])
    return keys


async def _serve(settings: ServerSettings, engine: Engine, options: SttServer) -> None:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_shielded, engine.aclose)
        signals = stack.enter_context(anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM))
        server = await stack.enter_async_context(TurnsServer.serve(settings, engine))
        server.faults.set(*options.fault, seed=options.seed)
        key = "any" if settings.api_keys is None else f"one of {options.api_key_file}"
        if settings.provider == "flux":
            lines = [f"Flux server ({engine.name}): {server.url}   key: {key}"]
        else:
            sdk = f'Cartesia(api_key="{key}", base_url="{server.base_url}")'
            lines = [f"turns server ({engine.name}): {server.url}   official SDK: {sdk}"]
        if options.control_port is not None:
            control = serve_control(server, options.control_port)
            port = await stack.enter_async_context(control)
            lines.append(f"control: http://127.0.0.1:{port}/")
        print("\n".join(lines), flush=True)
        await anext(aiter(signals))


async def _shielded(close: Callable[[], Awaitable[None]]) -> None:
    with anyio.CancelScope(shield=True):
        await close()
