"""`python -m tests.chaos`: tests under faults that no word is lost or published twice."""

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.chaos.plan import ChaosPlan
from worker.cli.command import add_plan_options, plan_of, program_parser, run_async
from worker.cli.main import main
from worker.errors import SettingsError, TurnbusError
from worker.local.emulator.engines.script_text import DRAWN, REWORDABLE, STYLES


def make_parser(_argv: Sequence[str]) -> ArgumentParser:
    """Return the parser of the program."""
    parser = program_parser(
        "python -m tests.chaos",
        run,
        about="Inject faults into a fleet of workers, and check the published events. Redis\n"
        "(append-only file on disk) and the workers run in separate processes, the STT server\n"
        "with its script engine in this one. Producers send numbered words while workers,\n"
        "connections, Redis and the provider are killed, paused, cut and refused, by a seed.\n"
        "Exit code 1 if a word is lost, repeated, damaged or moved, an event is out of order,\n"
        "or Redis keys are left over. A word may be missing only in an audio gap event for\n"
        "audio that was too late.",
        examples="""
python -m tests.chaos
python -m tests.chaos --seed 7 --turns 10000 --sessions 80
python -m tests.chaos --turns 600 --sessions 20 --connections 8
python -m tests.chaos --faults kill,lost-reply --every-s 0.5 --latency-ms 900 --logs logs""",
    )
    _add_arguments(parser)
    return parser


def _add_arguments(parser: ArgumentParser) -> None:
    add_plan_options(
        parser,
        ChaosPlan,
        "N",
        seed="seed of the sessions and the faults",
        turns="number of turns in total",
        sessions="maximum concurrent sessions",
        workers="worker processes",
        lease_ms="lease of the workers",
        latency_ms="event latency of the provider",
        every_s="mean seconds between two faults",
        connections="maximum sockets of the fleet at the provider; 0 for no limit",
        max_lag_s="TURNBUS_MAX_LAG_S of the workers, in seconds; 0 keeps all audio",
        long_every="one turn in N is longer than --max-lag-s; 0 for none",
    )
    parser.add_argument(
        "--rewording",
        action="store_true",
        help="the provider returns shorter and longer words in a replay",
    )
    parser.add_argument(
        "--text-style",
        choices=[DRAWN, *STYLES],
        default=DRAWN,
        help="separators of the provider's transcripts (default: drawn with the seed)",
    )
    parser.add_argument(
        "--faults",
        metavar="NAME,...",
        type=lambda text: tuple(text.split(",")),
        default=(),
        help="inject only these (default: all; an unknown name lists them)",
    )
    parser.add_argument(
        "--logs",
        metavar="DIR",
        type=Path,
        help="keep the worker logs, the fault log, and the events of each failed session there",
    )
    parser.add_argument("--json", action="store_true", help="print the report as a JSON object")


def run(arguments: Namespace) -> int:
    """Run the command. Raises TurnbusError if it cannot run."""
    from tests.chaos.report import json_of, text_of
    from tests.chaos.run import chaos
    from worker.bench.terminal import TerminalProgress

    if arguments.rewording and arguments.text_style not in (DRAWN, *REWORDABLE):
        raise SettingsError(
            [f"--text-style {arguments.text_style} has no separators: it excludes --rewording"]
        )
    plan = plan_of(arguments, ChaosPlan)
    with tempfile.TemporaryDirectory() as directory, TerminalProgress() as progress:
        logs = Path(directory) if arguments.logs is None else _made(arguments.logs)
        report = run_async(partial(chaos, plan, logs, progress))
    sys.stdout.write(json_of(report) if arguments.json else text_of(report))
    return 0 if report.ok else 1


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TurnbusError(f"--logs {directory}: {error.strerror}") from error
    return directory


if __name__ == "__main__":
    sys.exit(main(make_parser=make_parser))
