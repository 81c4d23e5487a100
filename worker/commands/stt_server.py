"""`turnbus stt-server`: the local turns server, in place of the provider."""

import signal
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Annotated

import anyio
from msgspec import Meta

from worker.commands import Subparsers, add_command, argument_type, run_async
from worker.errors import SettingsError
from worker.local.engines.base import Engine
from worker.local.server.server import TurnsServer
from worker.local.server.settings import ServerSettings

_ABOUT = """\
Serve the wire of Cartesia's realtime STT with turn detection, on this machine, without a key or a
network. The speech engine really listens (English); the script engine hears word numbers spelled
in audio, for tests and load.

Where the provider's documents are silent, this server chooses:
  - credentials, version, path and the cap on connections are answered with an HTTP status at the
    upgrade; model, audio format, thresholds and keyterms with an error and close 1008 after it
  - a threshold not asked for is 0.8 to start, 0.6 to eager_end, 0.3 to end, within 5600 ms;
    eager_end may be up to 0.8
  - config takes effect at once, in an open turn too, without an answer; a wrong one changes nothing
  - done does what close does
  - only audio resets the idle clock: neither pings nor text do
  - a message may have 16 MiB, audio may come at any pace, a session may last for ever
  - it sends no pings, and answers them; it declines compression
  - sample rates are 8000 to 192000 Hz with any encoding"""


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
TURNBUS_STT_URL=ws://127.0.0.1:8765/stt/turns/websocket CARTESIA_API_KEY=any turnbus run""",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=argument_type(Annotated[int, Meta(ge=0, le=65_535)], "0 to 65535"),
        default=8765,
        help="port to listen on, 0 for any that is free (default %(default)s)",
    )
    parser.add_argument(
        "--engine",
        choices=["speech", "script"],
        default="speech",
        help="what listens (default %(default)s)",
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="keys and access tokens to let in, one a line (default: any)",
    )
    parser.add_argument(
        "--max-connections",
        metavar="N",
        type=argument_type(Annotated[int, Meta(ge=1)], "1 or more"),
        help="open sockets beyond which upgrades are refused with 429, as a plan's limit does "
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
        help="script engine: how much later events come than they could (default 0)",
    )


def run(arguments: Namespace) -> int:
    """Serve until interrupted. Raises TurnbusError if it cannot listen or has no recognizer."""
    if arguments.latency_ms is not None and arguments.engine != "script":
        raise SettingsError(["--latency-ms is of the script engine; the speech engine has its own"])
    settings = ServerSettings(
        host=arguments.host,
        port=arguments.port,
        api_keys=_read_keys(arguments.api_key_file),
        max_connections=arguments.max_connections,
        idle_timeout_s=arguments.idle_timeout_s,
    )
    engine = _engine(arguments)
    run_async(partial(_serve, settings, engine))
    return 0


def _engine(arguments: Namespace) -> Engine:
    # Imported when chosen: the recognizer takes memory and time to load.
    if arguments.engine == "script":
        from worker.local.engines.script import ScriptEngine, ScriptOptions

        return ScriptEngine(ScriptOptions(latency_ms=arguments.latency_ms or 0.0))
    from worker.local.engines.speech import SpeechEngine

    return SpeechEngine()


def _read_keys(path: Path | None) -> frozenset[str] | None:
    if path is None:
        return None
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise SettingsError([f"--api-key-file {path}: {error.strerror}"]) from error
    keys = frozenset(line.strip() for line in lines if line.strip())
    if not keys:
        raise SettingsError([f"--api-key-file {path}: has no key in it"])
    return keys


async def _serve(settings: ServerSettings, engine: Engine) -> None:
    try:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with TurnsServer.serve(settings, engine) as server:
                print(
                    f"turns server ({engine.name}): {server.url}   official SDK: "
                    f'Cartesia(api_key="any", base_url="{server.base_url}")',
                    flush=True,
                )
                await anext(aiter(signals))
    finally:
        with anyio.CancelScope(shield=True):
            await engine.aclose()
