"""`python -m tests.peers`: compares the worker with published clients under the same load."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from msgspec import Meta

from worker.cli.command import argument_type, program_parser, run_async
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
    def number(option: str, kind: object, must_be: str, default: float, about: str) -> None:
        parser.add_argument(
            option,
            metavar="N",
            type=argument_type(kind, must_be),
            default=default,
            help=f"{about} (default %(default)s)",
        )

    seconds = Annotated[float, Meta(ge=1, le=3_600)]
    number("--sessions", Annotated[int, Meta(ge=1, le=10_000)], "1 to 10000", 50, "live at once")
    number(
        "--chunk-ms",
        Annotated[int, Meta(ge=10, le=300, multiple_of=10)],
        "a multiple of 10 up to 300",
        100,
        "audio per append",
    )
    number("--seconds", seconds, "1 to 3600", 20, "measured")
    number(
        "--warmup", seconds, "1 to 3600", 5, "seconds before that; sessions start in the first half"
    )
    number("--repeat", Annotated[int, Meta(ge=1, le=100)], "1 to 100", 1, "runs of each, in turn")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: Namespace) -> int:
    """Run the command. Raises TurnbusError if it cannot run."""
    from tests.peers.report import json_of, text_of
    from tests.peers.run import compare_peers
    from worker.bench.plan import Plan
    from worker.bench.terminal import TerminalProgress

    plan = Plan(
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
