"""`python -m tests.peers`: compares the worker with published clients under the same load."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial

from worker.bench.plan import LoadPlan, Repeat
from worker.cli.command import add_plan_options, argument_type, program_parser, run_async
from worker.cli.main import main


def make_parser(_argv: Sequence[str]) -> ArgumentParser:
    """Return the parser of the program."""
    parser = program_parser(
        "python -m tests.peers",
        run,
        about="Measure the cost of a chunk for the worker and for the published clients of the\n"
        "same provider: Cartesia's SDK, LiveKit's plugin and Pipecat's service, unmodified, at\n"
        "pinned versions. Each is installed once from the package index into its own environment\n"
        "below ~/.cache/turnbus/peers (XDG_CACHE_HOME); a few hundred MB. A failed installation\n"
        "is reported in the table. Exit code 1 if the worker loses, repeats or damages a word.",
        examples="""
python -m tests.peers
python -m tests.peers --sessions 20 --repeat 3
python -m tests.peers --json""",
    )
    _add_arguments(parser)
    return parser


def _add_arguments(parser: ArgumentParser) -> None:
    add_plan_options(
        parser,
        LoadPlan,
        "N",
        sessions="concurrent sessions",
        chunk_ms="audio per append",
        seconds="duration of the measurement",
        warmup="duration of the warm-up; sessions start in its first half",
    )
    parser.add_argument(
        "--repeat",
        metavar="N",
        type=argument_type(Repeat, "1 to 100"),
        default=1,
        help="runs of each client, in turn (default %(default)s)",
    )
    parser.set_defaults(sessions=50)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: Namespace) -> int:
    """Run the command. Raises TurnbusError if it cannot run."""
    from tests.peers.report import json_of, text_of
    from tests.peers.run import compare_peers
    from worker.bench.terminal import TerminalProgress

    plan = LoadPlan(
        sessions=arguments.sessions,
        chunk_ms=arguments.chunk_ms,
        seconds=arguments.seconds,
        warmup=arguments.warmup,
    )
    with TerminalProgress() as progress:
        report = run_async(partial(compare_peers, plan, arguments.repeat, progress))
    sys.stdout.write(json_of(report).decode() + "\n" if arguments.json else text_of(report))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main(make_parser=make_parser))
