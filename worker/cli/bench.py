"""`turnbus bench`: measure what a worker costs on this machine, and how late its turns are."""

import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from schemas import Encoding
from schemas.validation import describe_type
from worker.cli import recovery
from worker.cli.command import Subparsers, add_command, argument_type, run_async
from worker.errors import TurnbusError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "bench",
        run,
        about="Measure one worker under load. Redis, the local STT server with its script engine\n"
        "and the worker run as separate processes, which stop at the end. This process sends\n"
        "words and pauses to every session in real time. Exit code 1 if any word is lost,\n"
        "repeated or wrong. CPU is user and system time of the process.",
        examples="""
turnbus bench
turnbus bench --sessions 300 --repeat 3
turnbus bench --seconds 900 --churn 30
turnbus bench --traced --repeat 3
turnbus bench --encoding pcm_mulaw --sample-rate 8000 --chunk-ms 20 --json
turnbus bench recovery""",
    )
    _add_arguments(parser)
    others = parser.add_subparsers(
        title="another bench",
        description="recovery   how soon sessions continue after a fault (recovery --help)",
        metavar="[recovery]",
    )
    recovery.add_parser(others)


def _add_arguments(parser: ArgumentParser) -> None:
    seconds = argument_type(Annotated[float, Meta(ge=1, le=3_600)], "1 to 3600")
    parser.add_argument(
        "--sessions",
        metavar="N",
        type=argument_type(Annotated[int, Meta(ge=1, le=10_000)], "1 to 10000"),
        default=100,
        help="concurrent sessions (default %(default)s)",
    )
    parser.add_argument(
        "--chunk-ms",
        metavar="MS",
        type=argument_type(
            Annotated[int, Meta(ge=10, le=300, multiple_of=10)], "a multiple of 10 up to 300"
        ),
        default=100,
        help="audio per append (default %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=seconds,
        default=20.0,
        help="duration of the measurement (default %(default)g)",
    )
    parser.add_argument(
        "--warmup",
        metavar="S",
        type=seconds,
        default=5.0,
        help="duration of the warm-up; sessions start in its first half (default %(default)g)",
    )
    parser.add_argument(
        "--churn",
        metavar="S",
        type=seconds,
        help="lifetime of a session: it ends between two utterances, and another one replaces it\n"
        "(default: the whole run)",
    )
    parser.add_argument(
        "--encoding",
        type=argument_type(Encoding, describe_type(Encoding)),
        choices=list(Encoding),
        default=Encoding.PCM_S16LE,
        help="encoding of the audio (default %(default)s)",
    )
    parser.add_argument(
        "--sample-rate",
        metavar="HZ",
        type=argument_type(Annotated[int, Meta(ge=8_000, le=192_000)], "8000 to 192000"),
        default=16_000,
        help="sample rate of the audio (default %(default)s)",
    )
    parser.add_argument(
        "--traced",
        action="store_true",
        help="export the worker's spans over OTLP, to a collector that discards them",
    )
    parser.add_argument(
        "--repeat",
        metavar="N",
        type=argument_type(Annotated[int, Meta(ge=1, le=100)], "1 to 100"),
        default=1,
        help="runs, each from scratch; medians and ranges are reported (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", metavar="FILE", type=Path, help="also write the JSON object here")


def run(arguments: Namespace) -> int:
    """Run the benchmark. Raises TurnbusError if it cannot be run."""
    from worker.bench.plan import Plan
    from worker.bench.report import json_of
    from worker.bench.run import bench
    from worker.bench.terminal import TerminalProgress, show

    plan = Plan(
        sessions=arguments.sessions,
        chunk_ms=arguments.chunk_ms,
        seconds=arguments.seconds,
        warmup=arguments.warmup,
        life=arguments.churn,
        encoding=arguments.encoding,
        sample_rate=arguments.sample_rate,
        traced=arguments.traced,
    )
    with TerminalProgress() as progress:
        report = run_async(partial(bench, plan, arguments.repeat, progress))
    written = json_of(report)
    if arguments.json:
        sys.stdout.write(written.decode() + "\n")
    else:
        show(report)
    if arguments.out is not None:
        _write(arguments.out, written)
    return 0 if report.verdict.ok else 1


def _write(file: Path, data: bytes) -> None:
    try:
        file.write_bytes(data + b"\n")
    except OSError as error:
        raise TurnbusError(f"--out {file}: {error.strerror}") from error
