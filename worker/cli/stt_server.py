"""`turnbus stt-server`: the local turns server, in place of the provider."""

import argparse
import signal
import textwrap
from argparse import Namespace
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import anyio
from msgspec import Meta

from worker.cli.command import Subparsers, add_command, argument_type, choice, run_async
from worker.errors import SettingsError
from worker.local.emulator.control import serve_control
from worker.local.emulator.engines.base import Engine, TurnSettings
from worker.local.emulator.engines.script_text import DEFAULT_STYLE, STYLES
from worker.local.emulator.faults import GRAMMAR, parse_fault
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.urls import check_host

ArgumentGroup: TypeAlias = "argparse._ArgumentGroup"

_OLDER_DEFAULTS: Final = TurnSettings(eager_end=0.4, end=0.2)

_ABOUT = f"""\
Serve the wire protocol of Cartesia's realtime STT with turn detection on this machine, without a
key or a network. The speech engine recognizes English speech. The script engine decodes word
numbers that are encoded in the audio, for tests and load.

Where the provider's documentation is silent, this server has these defaults, and options for them:
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

Faults, injected only with --fault or the control port:
{textwrap.indent(GRAMMAR, "  ")}"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "stt-server",
        run,
        about=_ABOUT,
        examples="""
turnbus stt-server
turnbus stt-server --engine script --latency-ms 150 --max-connections 20
turnbus stt-server --fault cut@mid-turn,p=0.2 --fault http=503,count=3 --control-port 8766
TURNBUS_STT_URL=ws://127.0.0.1:8765/stt/turns/websocket CARTESIA_API_KEY=any turnbus run""",
    )
    parser.add_argument(
        "--host", type=_host, default="127.0.0.1", help="address to listen on (default %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=argument_type(Annotated[int, Meta(ge=0, le=65_535)], "0 to 65535"),
        default=8765,
        help="port to listen on, 0 for any that is free (default %(default)s)",
    )
    parser.add_argument(
        "--engine",
        type=choice,
        choices=["speech", "script"],
        default="speech",
        help="speech engine to use (default %(default)s)",
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="accepted keys and access tokens, one per line (default: any)",
    )
    parser.add_argument(
        "--max-connections",
        metavar="N",
        type=argument_type(Annotated[int, Meta(ge=1)], "1 or more"),
        help="maximum open sockets; further upgrades are rejected with 429, as by a plan's limit "
        "(default: no limit)",
    )
    parser.add_argument(
        "--idle-timeout-s",
        metavar="S",
        type=argument_type(Annotated[float, Meta(gt=0)], "more than 0"),
        default=180.0,
        help="seconds without audio after which a connection is closed (default %(default)g)",
    )
    parser.add_argument(
        "--latency-ms",
        metavar="MS",
        type=argument_type(Annotated[float, Meta(ge=0, le=60_000)], "0 to 60000"),
        help="script engine: extra event latency in milliseconds (default 0)",
    )
    parser.add_argument(
        "--text-style",
        choices=list(STYLES),
        help=f"script engine: separators between the words of a transcript (default {DEFAULT_STYLE}"
        ": spaces, and one before a later turn)",
    )
    _add_faults(parser.add_argument_group("faults"))
    _add_choices(parser.add_argument_group("undocumented provider behavior"))


def _host(text: str) -> str:
    try:
        check_host(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _add_faults(group: ArgumentGroup) -> None:
    group.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="SPEC",
        help="fault to inject, see above; may be repeated",
    )
    group.add_argument(
        "--seed",
        type=argument_type(Annotated[int, Meta(ge=0)], "0 or more"),
        default=0,
        help="random seed that selects the connections of a fault with p (default %(default)s)",
    )
    group.add_argument(
        "--control-port",
        type=argument_type(Annotated[int, Meta(ge=0, le=65_535)], "0 to 65535"),
        metavar="PORT",
        help="on 127.0.0.1, 0 for any that is free: GET / and /connections report its state; "
        "/faults/set?fault=SPEC, /faults/clear, /outage/start?how=refuse&for=30s (or how=503), "
        "/outage/stop and /cut act at once (default: none)",
    )


def _add_choices(group: ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="a model to serve, with its dated snapshots; may be repeated (default ink-2)",
    )
    group.add_argument(
        "--older-defaults",
        action="store_true",
        help="default thresholds are 0.4 to eager_end and 0.2 to end, as the SDK documents",
    )
    group.add_argument(
        "--refuse-in-band",
        action="store_true",
        help="reject bad credentials, a bad version and excess connections by an error and close "
        "1008",
    )
    group.add_argument(
        "--turn-id", action="store_true", help="add a turn_id to turn events, as observed live"
    )
    group.add_argument(
        "--config-ack",
        action="store_true",
        help="reply to config with the resulting settings, in the same form",
    )
    group.add_argument(
        "--no-leading-space",
        action="store_true",
        help="begin the transcript of a later turn without a separating space",
    )
    group.add_argument(
        "--text-resets-idle", action="store_true", help="let text reset the idle timeout too"
    )
    group.add_argument(
        "--max-session-s",
        type=argument_type(Annotated[float, Meta(gt=0)], "more than 0"),
        metavar="S",
        help="close a connection of this age with 1001 (default: never)",
    )
    group.add_argument(
        "--max-message-bytes",
        type=argument_type(Annotated[int, Meta(ge=1_024)], "1024 or more"),
        default=16 * 2**20,
        metavar="N",
        help="close with 1009 on a larger message (default %(default)s)",
    )
    group.add_argument(
        "--ping-s",
        type=argument_type(Annotated[float, Meta(gt=0)], "more than 0"),
        metavar="S",
        help="ping interval, and timeout for the pong; close with 1011 then (default: never)",
    )


def run(arguments: Namespace) -> int:
    """Serve until interrupted. Raises TurnbusError without a free port or a recognizer."""
    if arguments.latency_ms is not None and arguments.engine != "script":
        raise SettingsError(["--latency-ms requires --engine script; speech has its own latency"])
    if arguments.text_style is not None and arguments.engine != "script":
        raise SettingsError(["--text-style requires --engine script"])
    for spec in arguments.fault:
        parse_fault(spec)  # report an invalid one before loading the recognizer
    settings = ServerSettings(
        host=arguments.host,
        port=arguments.port,
        api_keys=_read_keys(arguments.api_key_file),
        max_connections=arguments.max_connections,
        models=tuple(arguments.model or ["ink-2"]),
        idle_timeout_s=arguments.idle_timeout_s,
        turn=_OLDER_DEFAULTS if arguments.older_defaults else TurnSettings(),
        refuse_in_band=arguments.refuse_in_band,
        turn_id=arguments.turn_id,
        config_ack=arguments.config_ack,
        leading_space=not arguments.no_leading_space,
        text_resets_idle=arguments.text_resets_idle,
        max_session_s=arguments.max_session_s,
        max_message=arguments.max_message_bytes,
        ping_s=arguments.ping_s,
    )
    engine = _engine(arguments)
    run_async(partial(_serve, settings, engine, arguments))
    return 0


def _engine(arguments: Namespace) -> Engine:
    # Imported on demand: the recognizer takes memory and time to load.
    if arguments.engine == "script":
        from worker.local.emulator.engines.script import ScriptEngine, ScriptOptions

        return ScriptEngine(
            ScriptOptions(
                latency_ms=arguments.latency_ms or 0.0,
                text_style=arguments.text_style or DEFAULT_STYLE,
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


async def _serve(settings: ServerSettings, engine: Engine, arguments: Namespace) -> None:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_shielded, engine.aclose)
        signals = stack.enter_context(anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM))
        server = await stack.enter_async_context(TurnsServer.serve(settings, engine))
        server.faults.set(*arguments.fault, seed=arguments.seed)
        key = "any" if settings.api_keys is None else f"one of {arguments.api_key_file}"
        sdk = f'Cartesia(api_key="{key}", base_url="{server.base_url}")'
        lines = [f"turns server ({engine.name}): {server.url}   official SDK: {sdk}"]
        if arguments.control_port is not None:
            control = serve_control(server, arguments.control_port)
            port = await stack.enter_async_context(control)
            lines.append(f"control: http://127.0.0.1:{port}/")
        print("\n".join(lines), flush=True)
        await anext(aiter(signals))


async def _shielded(close: Callable[[], Awaitable[None]]) -> None:
    with anyio.CancelScope(shield=True):
        await close()
