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
    from worker.local.demo.run import Victim

_MOST_SESSIONS = 12  # what the recognizer keeps up with on two cores
_EXPORT_EVERY_MS = "500"


class Demo(Command):
    """Play real speech through all parts of turnbus in real time, and show the turns live.

    The parts are a Redis server, two workers and a local turns server with a real recognizer. All
    processes start here and stop at the end. Meanwhile one worker is killed, and the other takes
    over. No key, no network. English only. Exit code 1 if words of the bundled recordings are lost
    or repeated.

    With --fail-over there are two turns servers, with the protocols of Cartesia and of Deepgram
    Flux. The first is killed inside a turn, and the sessions continue at the second. The first
    starts again, and new sessions return to it.

    examples:
      turnbus demo
      turnbus demo --fail-over
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
    kill: Annotated[
        bool | None, Option("kill -9 a worker in the middle (default: yes, without --fail-over)")
    ] = None
    fail_over: Annotated[
        bool, Option("kill -9 the first of two providers in the middle, instead of a worker")
    ] = False
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

        Raises SettingsError before anything starts if options exclude each other, a file cannot be
        played, or spans not printed.
        """
        from worker.local.demo.run import run_demo
        from worker.local.demo.sessions import FAIL_OVER_GAP_S, START_GAP_S, bundled, of_files

        victim = self._victim()
        environment = _environment(traces=self.traces)
        gap_s = FAIL_OVER_GAP_S if self.fail_over else START_GAP_S
        if self.files:
            cast = of_files(self.files, self.sessions, gap_s)
        else:
            cast = bundled(self.sessions, gap_s)
        # Entered outside the event loop, so that the terminal is always restored.
        with _audience(as_json=self.json) as audience:
            summary = run_async(partial(run_demo, cast, audience, environment, victim))
        return 0 if summary.complete else 1

    def _victim(self) -> "Victim | None":
        """Return what to kill. Raises SettingsError if it is a worker and a provider."""
        if self.fail_over and self.kill:
            raise SettingsError(["--fail-over kills a provider instead of a worker: omit --kill"])
        if self.fail_over:
            return "provider"
        return None if self.kill is False else "worker"


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
