"""`turnbus bench`: measure what a worker costs on this machine, and how late its turns are."""

import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from schemas import Encoding
from schemas.validation import describe_type
from worker.bench.plan import LoadPlan, Repeat, Seconds
from worker.cli import recovery
from worker.cli.command import (
    Subparsers,
    add_command,
    add_plan_options,
    argument_type,
    plan_of,
    run_async,
)
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
    add_plan_options(parser, LoadPlan, "N", sessions="concurrent sessions")
    add_plan_options(parser, LoadPlan, "MS", chunk_ms="audio per append")
    add_plan_options(
        parser,
        LoadPlan,
        "S",
        seconds="duration of the measurement",
        warmup="duration of the warm-up; sessions start in its first half",
    )
    parser.add_argument(
        "--churn",
        metavar="S",
        dest="life",
        type=argument_type(Seconds, "1 to 3600"),
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
    add_plan_options(parser, LoadPlan, "HZ", sample_rate="sample rate of the audio")
    parser.add_argument(
        "--traced",
        action="store_true",
        help="export the worker's spans over OTLP, to a collector that discards them",
    )
    parser.add_argument(
        "--repeat",
        metavar="N",
        type=argument_type(Repeat, "1 to 100"),
        default=1,
        help="runs, each from scratch; medians and ranges are reported (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", metavar="FILE", type=Path, help="also write the JSON object here")


def run(arguments: Namespace) -> int:
    """Run the benchmark. Raises TurnbusError if it cannot be run."""
    from worker.bench.load import bench
    from worker.bench.report import json_of
    from worker.bench.terminal import TerminalProgress, show

    plan = plan_of(arguments, LoadPlan)
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
