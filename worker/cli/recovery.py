"""`turnbus bench recovery`: how soon sessions continue after a kill, a drain or a lost socket."""

import sys
from argparse import ArgumentParser, Namespace
from functools import partial

from worker.bench.plan import RECOVERY_FAULTS, RecoveryPlan
from worker.cli.command import (
    Subparsers,
    add_command,
    add_plan_options,
    choice,
    plan_of,
    run_async,
)


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
    parser.add_argument(
        "what",
        nargs="?",
        type=choice,
        choices=RECOVERY_FAULTS,
        help="only this (default: all three)",
    )
    add_plan_options(
        parser,
        RecoveryPlan,
        "N",
        kill_sessions="sessions of the killed worker",
        drain_sessions="sessions of the stopped worker",
        trials="sockets reset in each of four scenarios, some at the same time",
        repeat="runs, each from scratch; all their values are reported together",
    )
    add_plan_options(parser, RecoveryPlan, "MS", chunk_ms="audio per append")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: Namespace) -> int:
    """Run the benchmark. Raises TurnbusError if it cannot be run."""
    from worker.bench.recovery.report import json_of, text_of
    from worker.bench.recovery.run import recovery
    from worker.bench.terminal import TerminalProgress

    arguments.what = RECOVERY_FAULTS if arguments.what is None else (arguments.what,)
    plan = plan_of(arguments, RecoveryPlan)
    with TerminalProgress() as progress:
        report = run_async(partial(recovery, plan, progress))
    sys.stdout.write(json_of(report).decode() + "\n" if arguments.json else text_of(report))
    return 0 if report.ok else 1
