"""`turnbus bench`: measure what a worker costs on this machine, and how late its turns are."""

import sys
from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from schemas import Encoding
from schemas.audio import ProviderName
from worker.bench.plan import LoadPlan, Repeat, Seconds
from worker.cli.command import Command, Option, run_async
from worker.cli.recovery import Recovery
from worker.errors import TurnbusError


class Bench(Command):
    """Measure one worker under load.

    Redis, the local STT server with its script engine and the worker run as separate processes,
    which stop at the end. This process sends words and pauses to every session in real time. Exit
    code 1 if any word is lost, repeated or wrong. CPU is user and system time of the process.

    examples:
      turnbus bench
      turnbus bench --sessions 300 --repeat 3
      turnbus bench --seconds 900 --churn 30
      turnbus bench --traced --repeat 3
      turnbus bench --provider flux
      turnbus bench --encoding pcm_mulaw --sample-rate 8000 --chunk-ms 20 --json
      turnbus bench recovery
    """

    sessions: Annotated[int, Meta(ge=1, le=10_000), Option("concurrent sessions", "N")] = 100
    chunk_ms: Annotated[
        int,
        Meta(ge=10, le=300, multiple_of=10, description="that is a multiple of 10"),
        Option("audio per append", "MS"),
    ] = 100
    seconds: Annotated[Seconds, Option("duration of the measurement", "S")] = 20.0
    warmup: Annotated[
        Seconds, Option("duration of the warm-up; sessions start in its first half", "S")
    ] = 5.0
    churn: Annotated[
        Seconds | None,
        Option(
            "lifetime of a session: it ends between two utterances, and another one replaces it "
            "(default: the whole run)",
            "S",
        ),
    ] = None
    encoding: Annotated[Encoding, Option("encoding of the audio")] = Encoding.PCM_S16LE
    sample_rate: Annotated[
        int, Meta(ge=8_000, le=192_000), Option("sample rate of the audio", "HZ")
    ] = 16_000
    provider: Annotated[
        ProviderName, Option("provider whose protocol the local STT server serves")
    ] = "cartesia"
    traced: Annotated[
        bool, Option("export the worker's spans over OTLP, to a collector that discards them")
    ] = False
    repeat: Annotated[
        Repeat,
        Option("runs, each from scratch; medians and ranges are reported", "N"),
    ] = 1
    json: Annotated[bool, Option("print one JSON object")] = False
    out: Annotated[Path | None, Option("also write the JSON object here", "FILE", parse=Path)] = (
        None
    )

    @classmethod
    def add_to(cls, parser: ArgumentParser) -> None:
        """Add the options, and `recovery`."""
        super().add_to(parser)
        others = parser.add_subparsers(
            title="another bench",
            description="recovery   how soon sessions continue after a fault (recovery --help)",
            metavar="[recovery]",
        )
        Recovery.add_to(others.add_parser("recovery"))

    def run(self) -> int:
        """Run the benchmark. Raises TurnbusError if it cannot be run."""
        from worker.bench.load import bench
        from worker.bench.report import json_of
        from worker.bench.terminal import TerminalProgress, show

        plan = LoadPlan(
            sessions=self.sessions,
            chunk_ms=self.chunk_ms,
            seconds=self.seconds,
            warmup=self.warmup,
            life=self.churn,
            encoding=self.encoding,
            sample_rate=self.sample_rate,
            traced=self.traced,
            provider=self.provider,
        )
        with TerminalProgress() as progress:
            report = run_async(partial(bench, plan, self.repeat, progress))
        written = json_of(report)
        if self.json:
            sys.stdout.write(written.decode() + "\n")
        else:
            show(report)
        if self.out is not None:
            _write(self.out, written)
        return 0 if report.verdict.ok else 1


def _write(file: Path, data: bytes) -> None:
    try:
        file.write_bytes(data + b"\n")
    except OSError as error:
        raise TurnbusError(f"--out {file}: {error.strerror}") from error
