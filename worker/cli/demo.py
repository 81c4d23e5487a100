"""`turnbus demo`: run everything on this machine, live."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from worker.cli.command import Argument, Command, Option, run_async
from worker.errors import SettingsError
from worker.telemetry.environment import exporter_name

if TYPE_CHECKING:
    from worker.local.demo.display import Display

_MOST_SESSIONS = 12  # what the recognizer keeps up with on two cores
_EXPORT_EVERY_MS = "500"


class Demo(Command):
    """Play real speech through all parts of turnbus in real time, and show the turns live.

    The parts are a Redis server, two workers and a local turns server with a real recognizer. All
    processes start here and stop at the end. Meanwhile one worker is killed, and the other takes
    over. No key, no network. English only.

    examples:
      turnbus demo
      turnbus demo my.wav --no-kill
      turnbus demo --traces
      turnbus demo --json | jq -r 'select(.type == "turn.end") | .transcript'
    """

    files: Annotated[
        tuple[Path, ...],
        Argument(
            "sound files to play, a session each (default: bundled recordings)", "FILE", parse=Path
        ),
    ] = ()
    sessions: Annotated[
        Annotated[int, Meta(ge=1, le=_MOST_SESSIONS)] | None,
        Option(
            "number of sessions; recordings are reused if needed (default: 6, or one per file)", "N"
        ),
    ] = None
    kill: Annotated[bool, Option("kill -9 a worker in the middle (default: yes)")] = True
    traces: Annotated[
        bool,
        Option(
            "print the spans at the end, as OTEL_TRACES_EXPORTER=console does; other OTEL_* "
            "variables send them to a collector"
        ),
    ] = False
    json: Annotated[bool, Option("print JSON lines: events, spans, summary")] = False

    def run(self) -> int:
        """Run the demo.

        Raises SettingsError before anything starts if a file cannot be played, or spans not
        printed.
        """
        from worker.local.demo.run import run_demo
        from worker.local.demo.sessions import bundled, of_files

        environment = _environment(traces=self.traces)
        cast = of_files(self.files, self.sessions) if self.files else bundled(self.sessions)
        # Entered outside the event loop, so that the terminal is always restored.
        with _audience(as_json=self.json) as audience:
            run_async(partial(run_demo, cast, audience, environment, kill=self.kill))
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
