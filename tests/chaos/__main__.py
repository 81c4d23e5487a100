"""`python -m tests.chaos`: tests under faults that no word is lost or published twice."""

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from tests.chaos.plan import ChaosPlan
from worker.cli.command import Command, Option, Parser, run_async
from worker.cli.main import main
from worker.errors import SettingsError, TurnbusError
from worker.local.emulator.engines.script_text import DRAWN, REWORDABLE, STYLES

_DEFAULT = ChaosPlan()


class Chaos(Command):
    """Inject faults into a fleet of workers, and check the published events.

    Redis (append-only file on disk) and the workers run in separate processes, the STT server
    with its script engine in this one. Producers send numbered words while workers, connections,
    Redis and the provider are killed, paused, cut and refused, by a seed. Exit code 1 if a word is
    lost, repeated, damaged or moved, an event is out of order, or Redis keys are left over. A word
    may be missing only in an audio gap event for audio that was too late.

    examples:
      python -m tests.chaos
      python -m tests.chaos --seed 7 --turns 10000 --sessions 80
      python -m tests.chaos --turns 600 --sessions 20 --connections 8
      python -m tests.chaos --faults kill,lost-reply --every-s 0.5 --latency-ms 900 --logs logs
    """

    seed: Annotated[int, Option("seed of the sessions and the faults", "N")] = _DEFAULT.seed
    turns: Annotated[int, Meta(ge=1), Option("number of turns in total", "N")] = _DEFAULT.turns
    sessions: Annotated[int, Meta(ge=1, le=200), Option("maximum concurrent sessions", "N")] = (
        _DEFAULT.sessions
    )
    workers: Annotated[int, Meta(ge=1, le=16), Option("worker processes", "N")] = _DEFAULT.workers
    providers: Annotated[
        str,
        Option(
            "providers of the sessions, the preferred one first",
            choices=("cartesia", "flux", "cartesia,flux", "flux,cartesia"),
        ),
    ] = _DEFAULT.providers
    mixed: Annotated[
        bool, Option("workers have the providers in different orders, one only the first")
    ] = False
    lease_ms: Annotated[int, Meta(ge=2_000), Option("lease of the workers", "N")] = (
        _DEFAULT.lease_ms
    )
    latency_ms: Annotated[float, Meta(ge=0), Option("event latency of the provider", "N")] = (
        _DEFAULT.latency_ms
    )
    rewording: Annotated[
        bool, Option("the provider returns shorter and longer words in a replay")
    ] = False
    text_style: Annotated[
        str,
        Option(
            "separators of the provider's transcripts (default: drawn with the seed)",
            choices=(DRAWN, *STYLES),
        ),
    ] = _DEFAULT.text_style
    every_s: Annotated[float, Meta(gt=0), Option("mean seconds between two faults", "N")] = (
        _DEFAULT.every_s
    )
    faults: Annotated[
        str, Option("inject only these (default: all; an unknown name lists them)", "NAME,...")
    ] = ""
    connections: Annotated[
        int,
        Meta(ge=0),
        Option("maximum sockets of the fleet at the provider; 0 for no limit", "N"),
    ] = _DEFAULT.connections
    max_lag_s: Annotated[
        float,
        Meta(ge=0),
        Option("TURNBUS_MAX_LAG_S of the workers, in seconds; 0 keeps all audio", "N"),
    ] = _DEFAULT.max_lag_s
    long_every: Annotated[
        int, Meta(ge=0), Option("one turn in N is longer than --max-lag-s; 0 for none", "N")
    ] = _DEFAULT.long_every
    logs: Annotated[
        Path | None,
        Option(
            "keep the worker logs, the fault log, and the events of each failed session there",
            "DIR",
            parse=Path,
        ),
    ] = None
    json: Annotated[bool, Option("print the report as a JSON object")] = False

    @property
    def plan(self) -> ChaosPlan:
        """The plan of the run."""
        options = {name: getattr(self, name) for name in ChaosPlan.__struct_fields__}
        return ChaosPlan(
            **options | {"faults": tuple(self.faults.split(",")) if self.faults else ()}
        )

    def run(self) -> int:
        """Run the command. Raises TurnbusError if it cannot run."""
        from tests.chaos.report import json_of, text_of
        from tests.chaos.run import chaos
        from worker.bench.terminal import TerminalProgress

        if self.rewording and self.text_style not in (DRAWN, *REWORDABLE):
            raise SettingsError(
                [f"--text-style {self.text_style} has no separators: it excludes --rewording"]
            )
        with tempfile.TemporaryDirectory() as directory, TerminalProgress() as progress:
            logs = Path(directory) if self.logs is None else _made(self.logs)
            report = run_async(partial(chaos, self.plan, logs, progress))
        sys.stdout.write(json_of(report) if self.json else text_of(report))
        return 0 if report.ok else 1


def make_parser(_argv: Sequence[str]) -> Parser:
    """Return the parser of the program."""
    return Chaos.parser("python -m tests.chaos")


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TurnbusError(f"--logs {directory}: {error.strerror}") from error
    return directory


if __name__ == "__main__":
    sys.exit(main(make_parser=make_parser))
