"""The report of many runs: how much was simulated, which faults met which states, what failed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

import msgspec

from tests.simulation.fleet.history import Finding
from tests.simulation.fleet.plan import FAULTS, FleetPlan
from worker.core.phases import Phase
from worker.core.turn_tracker import TABLE, ProviderInput, ProviderState, PublishedState

PHASES: Final = tuple(phase.value for phase in Phase if phase is not Phase.OVER)
TRACKER: Final = tuple(
    f"{published}/{provider}"
    for published in PublishedState
    for provider in ProviderState
    if any((published, provider, kind) in TABLE for kind in ProviderInput)
)
"""States of the turn tracker that can occur: published/provider.

Two cannot: `none/speaking` and `none/eager`. The tracker publishes the start of a turn at once, and
an end that it publishes ends the provider's turn too. Every kind of fault can meet every other.
"""

STATES: Final = (*PHASES, *TRACKER)

EACH_STATE_SEEDS: Final = 1_000
"""Number of seeds of which each kind of fault meets sessions in each state."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one run."""

    plan: FleetPlan
    findings: tuple[Finding, ...]
    digest: str
    """Digest of the event log: equal for two runs of one plan."""
    seconds: float
    """Virtual seconds until the last worker stopped."""
    faults: Mapping[str, int]
    """Number of applied faults by kind; the others found no target."""
    states: Mapping[str, Mapping[str, int]]
    """Number of sessions by kind of fault and by the state in which it met them."""
    events: int
    commits: int
    claims: int
    sockets: int
    """Number of sockets that reached the providers."""
    history: tuple[str, ...] = ()
    """Faults, claims and commits in words."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


class Totals:
    """Sums over many runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.session_seconds = 0.0
        self.virtual_seconds = 0.0
        self.events = 0
        self.commits = 0
        self.claims = 0
        self.sockets = 0
        self.sessions = 0
        self.words = 0
        self.faults: Final[Counter[str]] = Counter()
        self.states: Final[Counter[tuple[str, str]]] = Counter()
        self.failures: Final[dict[int, tuple[Finding, ...]]] = {}
        """Findings by seed."""

    def add(self, outcome: Outcome) -> None:
        """Add one run."""
        self.runs += 1
        self.session_seconds += outcome.plan.session_seconds
        self.virtual_seconds += outcome.seconds
        self.events += outcome.events
        self.commits += outcome.commits
        self.claims += outcome.claims
        self.sockets += outcome.sockets
        self.sessions += len(outcome.plan.sessions)
        self.words += sum(each.script.words for each in outcome.plan.sessions)
        self.faults.update(outcome.faults)
        for kind, states in outcome.states.items():
            self.states.update({(kind, state): count for state, count in states.items()})
        if outcome.findings:
            self.failures[outcome.plan.seed] = outcome.findings

    def never_reached(self) -> list[tuple[str, str]]:
        """Return the kinds of faults and the states in which none of them met a session."""
        return [
            (kind, state) for kind in FAULTS for state in STATES if not self.states[kind, state]
        ]


def text_of(totals: Totals) -> str:
    """Return the report as plain text."""
    lines = [
        (
            f"seeds: {totals.runs}, session-hours: {totals.session_seconds / 3_600:.1f}, "
            f"fleet-hours: {totals.virtual_seconds / 3_600:.1f}"
        ),
        (
            f"sessions: {totals.sessions}, words: {totals.words}, events: {totals.events}, "
            f"commits: {totals.commits}, claims: {totals.claims}, sockets: {totals.sockets}"
        ),
        f"faults: {totals.faults.total()}",
        *_table(totals),
    ]
    missing = totals.never_reached() if totals.runs >= EACH_STATE_SEEDS else []
    for kind, pairs in groupby(missing, itemgetter(0)):
        lines.append(f"never reached by {kind}: {', '.join(state for _, state in pairs)}")
    lines += _failures(totals.failures)
    return "\n".join(lines) + "\n"


def _table(totals: Totals) -> Iterator[str]:
    """Yield the sessions that each kind of fault met, by state."""
    kinds = [kind for kind in FAULTS if totals.faults[kind]]
    rows: list[Sequence[str]] = [("fault", "count", *STATES)]
    rows += [
        (kind, f"{totals.faults[kind]}", *(f"{totals.states[kind, state]}" for state in STATES))
        for kind in kinds
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        yield f"  {row[0].ljust(widths[0])}  {'  '.join(cells)}"


def _failures(failures: Mapping[int, Sequence[Finding]]) -> Iterator[str]:
    if not failures:
        yield "failures: none"
        return
    rules = Counter(found.rule for findings in failures.values() for found in findings)
    yield f"failures: {len(failures)} seeds ({', '.join(f'{n} {r}' for r, n in rules.items())})"
    for seed, findings in failures.items():
        yield f"  seed {seed}:"
        yield from (f"    {found}" for found in findings[:10])
        if len(findings) > 10:
            yield f"    and {len(findings) - 10} more"
