"""`turnbus demo`: run everything on this machine, live."""

import os
import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from worker.cli.command import Subparsers, add_command, argument_type, run_async
from worker.errors import SettingsError
from worker.telemetry.environment import exporter_name

if TYPE_CHECKING:
    from worker.local.demo.display import Display

_MOST_SESSIONS = 12  # what the recognizer keeps up with on two cores
_EXPORT_EVERY_MS = "500"


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "demo",
        run,
        about="Play real speech in real time through a Redis server, two workers and a local turns "
        "server with a real recognizer, and show the turns as they arrive. All processes start "
        "here and stop at the end. Meanwhile one worker is killed, and the other takes over. No "
        "key, no network. English only.",
        examples="""
turnbus demo
turnbus demo my.wav --no-kill
turnbus demo --traces
turnbus demo --json | jq -r 'select(.type == "turn.end") | .transcript'""",
    )
    _add_arguments(parser)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILE",
        type=Path,
        nargs="*",
        help="sound files to play, a session each (default: bundled recordings)",
    )
    parser.add_argument(
        "--sessions",
        metavar="N",
        type=argument_type(Annotated[int, Meta(ge=1, le=_MOST_SESSIONS)], f"1 to {_MOST_SESSIONS}"),
        help="number of sessions; recordings are reused if needed (default: 6, or one per file)",
    )
    parser.add_argument(
        "--kill",
        action=BooleanOptionalAction,
        default=True,
        help="kill -9 a worker in the middle (default: yes)",
    )
    parser.add_argument(
        "--traces",
        action="store_true",
        help="print the spans at the end, as OTEL_TRACES_EXPORTER=console does; other OTEL_* "
        "variables send them to a collector",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON lines: events, spans, summary"
    )


def run(arguments: Namespace) -> int:
    """Run the demo.

    Raises SettingsError before anything starts if a file cannot be played, or spans not printed.
    """
    from worker.local.demo.run import run_demo
    from worker.local.demo.sessions import bundled, of_files

    environment = _environment(traces=arguments.traces)
    sessions = arguments.sessions
    cast = of_files(arguments.files, sessions) if arguments.files else bundled(sessions)
    # Entered outside the event loop, so that the terminal is always restored.
    with _audience(as_json=arguments.json) as audience:
        run_async(partial(run_demo, cast, audience, environment, kill=arguments.kill))
    return 0


def _environment(*, traces: bool) -> dict[str, str]:
    """Return the environment; with `traces`, changed so that spans go to the console."""
    if not traces:
        return dict(os.environ)
    chosen = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "none"
    if chosen not in ("none", "console"):
        elsewhere = f"--traces: OTEL_TRACES_EXPORTER={chosen} sends spans elsewhere; unset it"
        raise SettingsError([elsewhere])
    shown = {**os.environ, "OTEL_TRACES_EXPORTER": "console"}
    if exporter_name("traces", shown) != "console":
        raise SettingsError(["--traces: OTEL_SDK_DISABLED=true disables spans; unset it"])
    # The killed worker should have exported most of its spans before.
    shown.setdefault("OTEL_BSP_SCHEDULE_DELAY", _EXPORT_EVERY_MS)
    return shown


def _audience(*, as_json: bool) -> "Display":
    if as_json:
        from worker.local.demo.display import JsonLines

        return JsonLines()
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from worker.local.demo.live_display import LiveView

        return LiveView()
    from worker.local.demo.display import PlainLines

    return PlainLines()
