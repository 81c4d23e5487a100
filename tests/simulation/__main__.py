"""`python -m tests.simulation`: runs simulated fleets under faults, or pure calls, by seeds."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
from msgspec import Meta

from tests.simulation.virtual.world import fix_hashes
from worker.cli.command import Command, Option, Parser
from worker.cli.main import main
from worker.errors import SettingsError

if TYPE_CHECKING:
    from tests.simulation.fleet.plan import FleetPlan
    from tests.simulation.fleet.report import Outcome

CALLS_TOGETHER = 50
PROGRESS_CALLS = 5_000

T = TypeVar("T")
R = TypeVar("R")


class Simulation(Command):
    """Run fleets of workers in virtual time, and check what they publish.

    Each seed draws a fleet: workers, sessions, providers, settings and faults. Workers, scripts and
    the emulated providers are real; Redis, the network and the clocks are simulated. Exit code 1 if
    a guarantee is violated. A failure is printed with its seed, which repeats it.

    With --calls it runs single calls of one session instead: thousands a minute, in which only
    sockets are lost, and messages are late.

    examples:
      python -m tests.simulation --seeds 100
      python -m tests.simulation --first 4711 --shrink
      python -m tests.simulation --plan failure.json --history
      python -m tests.simulation --mutants
      python -m tests.simulation --calls 10000 --jobs 2
    """

    seeds: Annotated[int, Meta(ge=1), Option("number of seeds", "N")] = 1
    calls: Annotated[int, Meta(ge=0), Option("run so many pure calls instead of fleets", "N")] = 0
    provider: Annotated[
        str, Option("provider of all calls (default: drawn)", choices=("cartesia", "flux"))
    ] = ""
    first: Annotated[int, Meta(ge=0), Option("first seed", "N")] = 1
    jobs: Annotated[int, Meta(ge=1), Option("number of processes", "N")] = 1
    plan: Annotated[
        Path | None, Option("run this plan instead, as `--shrink` prints it", "FILE", parse=Path)
    ] = None
    shrink: Annotated[bool, Option("make the plan of the first failure smaller, and print it")] = (
        False
    )
    history: Annotated[bool, Option("print faults, claims and commits of each failure")] = False
    mutants: Annotated[
        bool, Option("run workers with one guard removed, until a seed finds each of them")
    ] = False
    only: Annotated[str, Option("names of the mutants to run (default: all)", "NAME,...")] = ""
    json: Annotated[
        bool, Option("print JSON: each fleet's outcome on a line, or the totals of the calls")
    ] = False

    def run(self) -> int:
        """Run the command. Raises SettingsError for options that cannot be used."""
        from tests.simulation.fleet.report import Totals, text_of

        if self.provider and not self.calls:
            raise SettingsError(["--provider: a fleet draws its providers; use it with --calls"])
        if self.mutants:
            return self._run_mutants()
        if self.calls:
            return self._run_calls()
        totals, failed = Totals(), None
        for outcome in self._outcomes():
            totals.add(outcome)
            if self.json:
                sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
            elif not outcome.ok:
                for found in outcome.findings:
                    _log(f"seed {outcome.plan.seed}: {found}")
                if self.history:
                    sys.stdout.write("\n".join((*outcome.history, "")))
            elif totals.runs % 100 == 0:
                _log(f"{totals.runs} seeds, {len(totals.failures)} failures")
            failed = failed or (None if outcome.ok else outcome)
        if self.shrink and failed is not None:
            self._shrink(failed.plan)
        if not self.json:
            sys.stdout.write(text_of(totals))
        return 1 if totals.failures else 0

    def _outcomes(self) -> "Iterator[Outcome]":
        from tests.simulation.fleet.plan import decode_plan
        from tests.simulation.fleet.run import run, run_seed

        if self.plan is not None:
            try:
                yield run(decode_plan(self.plan.read_bytes()))
            except (OSError, msgspec.DecodeError) as error:
                raise SettingsError([f"--plan {self.plan}: {error}"]) from None
            return
        yield from _mapped(run_seed, range(self.first, self.first + self.seeds), self.jobs)

    def _shrink(self, plan: "FleetPlan") -> None:
        from tests.simulation.fleet.plan import encode_plan
        from tests.simulation.fleet.run import run
        from tests.simulation.fleet.shrink import shrink

        rules = {found.rule for found in run(plan).findings}

        def fails(smaller: "FleetPlan") -> bool:
            outcome = run(smaller)
            _log(f"{len(smaller.sessions)} sessions, {len(smaller.faults)} faults: {outcome.ok}")
            return bool(rules & {found.rule for found in outcome.findings})

        sys.stdout.write(encode_plan(shrink(plan, fails)) + "\n")

    def _run_calls(self) -> int:
        from tests.simulation.call_report import CallTotals, run_seed, text_of

        totals, seeds = CallTotals(), range(self.first, self.first + self.calls)
        run = partial(run_seed, provider=self.provider)
        for count, outcome in enumerate(_mapped(run, seeds, self.jobs, CALLS_TOGETHER), 1):
            totals.add(outcome)
            if outcome.failure and not self.json:
                plan = outcome.plan
                _log(f"seed {plan.seed} ({plan.promise}): {outcome.failure}")
            if count % PROGRESS_CALLS == 0:
                _log(f"{count} calls, {totals.all.failed} failures")
        if self.json:
            sys.stdout.write(msgspec.json.encode(totals.to_builtins()).decode() + "\n")
        else:
            sys.stdout.write(text_of(totals))
        return 0 if totals.ok else 1

    def _run_mutants(self) -> int:
        from tests.simulation.fleet.mutants import MUTANTS, find_mutant

        names = self.only.split(",") if self.only else list(MUTANTS)
        if unknown := [name for name in names if name not in MUTANTS]:
            raise SettingsError([f"--only: {', '.join(unknown)}; mutants are {', '.join(MUTANTS)}"])
        missed = 0
        for name, found in zip(names, _mapped(find_mutant, names, self.jobs), strict=True):
            missed += found is None
            where = "not found" if found is None else f"found by seed {found.seed}: {found.finding}"
            sys.stdout.write(f"{name} ({MUTANTS[name].guard}): {where}\n")
            sys.stdout.flush()
        return 1 if missed else 0


def _mapped(
    function: Callable[[T], R], values: Iterable[T], jobs: int, together: int = 1
) -> Iterator[R]:
    """Yield the results in the order of the values, from one or several processes.

    A process takes so many values `together`.
    """
    if jobs == 1:
        yield from map(function, values)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(function, values, chunksize=together)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_parser(_argv: Sequence[str]) -> Parser:
    """Return the parser of the program."""
    return Simulation.parser("python -m tests.simulation")


if __name__ == "__main__":
    fix_hashes()
    sys.exit(main(make_parser=make_parser))
