"""`python -m tests.peers`: compares the worker with published clients under the same load."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from msgspec import Meta

from worker.bench.plan import LoadPlan, Repeat, Seconds
from worker.cli.command import Command, Option, Parser, run_async
from worker.cli.main import main
from worker.errors import SettingsError


class Peers(Command):
    """Measure the cost of a chunk for the worker and for published clients of its provider.

    They are Cartesia's SDK, LiveKit's plugin and Pipecat's service, unmodified, at pinned
    versions. Each is installed once from the package index into its own environment below
    ~/.cache/turnbus/peers (XDG_CACHE_HOME); a few hundred MB. A failed installation is reported in
    the table. Exit code 1 if the worker loses, repeats or damages a word.

    With --floor, nothing is installed. The worker is compared with a relay that moves chunks and
    events between Redis and the provider, and guarantees nothing. Exit code 1 if either loses,
    repeats or damages a word.

    With --providers, nothing is installed either. The worker is measured with one provider and with
    the other.

    examples:
      python -m tests.peers
      python -m tests.peers --sessions 20 --repeat 3
      python -m tests.peers --floor --sessions 300 --seconds 10 --repeat 3
      python -m tests.peers --providers --sessions 300 --seconds 10 --repeat 3
      python -m tests.peers --json
    """

    sessions: Annotated[int, Meta(ge=1, le=10_000), Option("live at once", "N")] = 50
    chunk_ms: Annotated[
        int,
        Meta(ge=10, le=300, multiple_of=10, description="that is a multiple of 10"),
        Option("audio per append", "N"),
    ] = 100
    seconds: Annotated[Seconds, Option("measured", "N")] = 20.0
    warmup: Annotated[
        Seconds, Option("seconds before that; sessions start in the first half", "N")
    ] = 5.0
    repeat: Annotated[Repeat, Option("runs of each client, in turn", "N")] = 1
    floor: Annotated[bool, Option("compare with the bare relay instead")] = False
    providers: Annotated[bool, Option("compare the providers Flux and Cartesia instead")] = False
    json: Annotated[bool, Option("print one JSON object")] = False

    def run(self) -> int:
        """Run the command.

        Raises TurnbusError if it cannot run, SettingsError if options exclude each other.
        """
        from tests.peers import pairs, report, run
        from worker.bench.terminal import TerminalProgress

        if self.floor and self.providers:
            raise SettingsError(["--floor and --providers: give one of them"])
        plan = LoadPlan(
            sessions=self.sessions,
            chunk_ms=self.chunk_ms,
            seconds=self.seconds,
            warmup=self.warmup,
        )
        with TerminalProgress() as progress:
            if self.floor or self.providers:
                pair = pairs.floor_pair(plan) if self.floor else pairs.provider_pair(plan)
                both = run_async(partial(pairs.compare, pair, self.repeat, progress))
                ok, text, data = both.ok, pairs.text_of(both), pairs.json_of(both)
            else:
                peers = run_async(partial(run.compare_peers, plan, self.repeat, progress))
                ok, text, data = peers.ok, report.text_of(peers), report.json_of(peers)
        sys.stdout.write(data.decode() + "\n" if self.json else text)
        return 0 if ok else 1


def make_parser(_argv: Sequence[str]) -> Parser:
    """Return the parser of the program."""
    return Peers.parser("python -m tests.peers")


if __name__ == "__main__":
    sys.exit(main(make_parser=make_parser))
