"""`turnbus bench recovery`: how soon sessions continue after a kill, a drain or a lost socket."""

import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from typing import Annotated

from msgspec import Meta

from worker.bench.recovery.plan import WHAT, RecoveryPlan
from worker.cli.command import Subparsers, add_command, argument_type, choice, run_async


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "recovery",
        run,
        about="Measure how soon sessions continue after a fault. Redis and the workers are\n"
        "separate processes; the STT server runs in this one, with its script engine 150 ms late.\n"
        "  kill   SIGKILL of a worker whose sessions are inside a turn: time until the STT server\n"
        "         has a new socket of each session\n"
        "  drain  SIGTERM to a worker whose sessions are between turns: time until it exits and\n"
        "         every session has another worker\n"
        "  cut    reset of a session's socket inside a turn: delay of its turn.end, compared with\n"
        "         a session that has the same audio and keeps its socket\n"
        "Exit code 1 if a word is lost, repeated, damaged or moved, or an event is out of order.",
        examples="""
turnbus bench recovery
turnbus bench recovery kill --kill-sessions 100 --repeat 5
turnbus bench recovery drain --drain-sessions 500 --chunk-ms 200 --json""",
    )
    _add_arguments(parser)


def _add_arguments(parser: ArgumentParser) -> None:
    default = RecoveryPlan()
    parser.add_argument(
        "what", nargs="?", type=choice, choices=WHAT, help="only this (default: all three)"
    )

    def number(option: str, most: int, about: str) -> None:
        parser.add_argument(
            option,
            metavar="N",
            type=argument_type(Annotated[int, Meta(ge=1, le=most)], f"1 to {most}"),
            default=getattr(default, option.removeprefix("--").replace("-", "_")),
            help=f"{about} (default %(default)s)",
        )

    number("--kill-sessions", 2_000, "sessions of the killed worker")
    number("--drain-sessions", 2_000, "sessions of the stopped worker")
    number("--trials", 500, "sockets reset in each of four scenarios, some at the same time")
    number("--repeat", 100, "runs, each from scratch; all their values are reported together")
    parser.add_argument(
        "--chunk-ms",
        metavar="MS",
        type=argument_type(
            Annotated[int, Meta(ge=10, le=300, multiple_of=10)], "a multiple of 10 up to 300"
        ),
        default=default.chunk_ms,
        help="audio per append (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: Namespace) -> int:
    """Run the benchmark. Raises TurnbusError if it cannot be run."""
    from worker.bench.recovery.report import json_of, text_of
    from worker.bench.recovery.run import recovery
    from worker.bench.terminal import TerminalProgress

    plan = RecoveryPlan(
        what=WHAT if arguments.what is None else (arguments.what,),
        kill_sessions=arguments.kill_sessions,
        drain_sessions=arguments.drain_sessions,
        trials=arguments.trials,
        chunk_ms=arguments.chunk_ms,
        repeat=arguments.repeat,
    )
    with TerminalProgress() as progress:
        report = run_async(partial(recovery, plan, progress))
    sys.stdout.write(json_of(report).decode() + "\n" if arguments.json else text_of(report))
    return 0 if report.ok else 1
