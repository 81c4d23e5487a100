"""`turnbus bench recovery`: how soon sessions go on after a kill, a drain and a lost socket."""

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
        about="Measure how soon sessions go on after a fault. Redis and the workers are processes\n"
        "of their own; the STT server with its script engine, 150 ms late, runs in this one.\n"
        "  kill   SIGKILL of a worker whose sessions are inside a turn: when each has a socket\n"
        "         again, as the STT server sees it\n"
        "  drain  SIGTERM to a worker whose sessions are between turns: when it is gone, and\n"
        "         every session has another\n"
        "  cut    the socket of a session is reset inside a turn: how much later its turn.end is\n"
        "         appended than that of a session which says the same and keeps its socket\n"
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

    number("--kill-sessions", 2_000, "of the worker that is killed")
    number("--drain-sessions", 2_000, "of the worker that is stopped")
    number("--trials", 500, "sockets cut in each of four scenes, some at the same time")
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
    """Run it. Raises TurnbusError if it cannot be run."""
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
