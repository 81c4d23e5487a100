"""The report of many pure calls: how many turns ended in a wrong place, and what was promised."""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import Final, NamedTuple

import msgspec

from tests.simulation.call_plan import CallPlan, Promise, Stall, draw_call
from tests.simulation.calls import Call, CallResult

MAX_FAILURES: Final = 20
"""Maximum number of failures that are listed of each kind."""

RARE_SHARE: Final = 0.001
"""Share of the calls with single late messages that may lose or repeat words."""


class Outcome(NamedTuple):
    """A call and its result."""

    plan: CallPlan
    result: CallResult

    @property
    def failure(self) -> str:
        """What is wrong with it, in words; empty if it is as promised.

        If few calls may fail, only a lost or repeated word is a failure.
        """
        result, found = self.result, []
        if self.plan.promise is Promise.EXACT:
            found += [f"a turn was cut wrong: {cut}" for cut in result.wrong_cuts]
        if result.wrong_words:
            found.append(f"of {result.words} words: {result.wrong_words}")
        return "; ".join(found)


def run_seed(seed: int, provider: str = "") -> Outcome:
    """Run the call of a seed."""
    plan = draw_call(seed, provider)
    return Outcome(plan, Call(plan).run())


class Sums(msgspec.Struct):
    """Sums over calls of one kind."""

    calls: int = 0
    seconds: float = 0.0
    losses: int = 0
    words: int = 0
    turns: int = 0
    early: int = 0
    """Turns that were cut before the end of their last word."""
    late: int = 0
    """Turns that were cut after the beginning of the next turn."""
    failed: int = 0
    """Calls that are not as promised, or whose words are wrong if nothing is promised."""

    def add(self, outcome: Outcome) -> None:
        """Add a call."""
        plan, result = outcome
        self.calls += 1
        self.seconds += result.seconds
        self.losses += plan.losses
        self.words += result.words
        self.turns += result.turns
        early = sum(cut.early for cut in result.wrong_cuts)
        self.early += early
        self.late += len(result.wrong_cuts) - early
        self.failed += bool(outcome.failure)


class CallTotals:
    """Sums over many calls, by provider, stall, and whether single messages are late."""

    def __init__(self) -> None:
        self.all: Final = Sums()
        self.groups: Final[dict[tuple[str, Stall, bool], Sums]] = {}
        self.promises: Final = {promise: Sums() for promise in Promise}
        self.failures: Final[dict[Promise, dict[int, str]]] = {promise: {} for promise in Promise}
        """The first failures by seed."""

    def add(self, outcome: Outcome) -> None:
        """Add a call."""
        plan = outcome.plan
        key = plan.provider, plan.stall, plan.delays.late_share > 0
        group = self.groups.setdefault(key, Sums())
        for sums in (self.all, group, self.promises[plan.promise]):
            sums.add(outcome)
        listed = self.failures[plan.promise]
        if outcome.failure and len(listed) < MAX_FAILURES:
            listed[plan.seed] = outcome.failure

    @property
    def ok(self) -> bool:
        """Whether nothing is worse than promised.

        Of a share, as many calls may fail as chance explains: three standard deviations.
        """
        rare = self.promises[Promise.RARE]
        expected = max(1.0, RARE_SHARE * rare.calls)
        return not (
            self.promises[Promise.EXACT].failed or rare.failed > expected + 3 * sqrt(expected)
        )

    def to_builtins(self) -> Mapping[str, object]:
        """Return the totals as JSON's types."""
        groups = [
            {"provider": provider, "stall": stall, "single_late": late, **msgspec.to_builtins(sums)}
            for (provider, stall, late), sums in sorted(self.groups.items())
        ]
        promises = {
            promise: {**msgspec.to_builtins(sums), "failures": self.failures[promise]}
            for promise, sums in self.promises.items()
        }
        return {"ok": self.ok, "promises": promises, "groups": groups}


def text_of(totals: CallTotals) -> str:
    """Return the report as plain text."""
    sums = totals.all
    hours = f"{sums.seconds / 3_600:.1f}"
    lines = [
        f"calls: {sums.calls}, call-hours: {hours}, turns: {sums.turns}, words: {sums.words}",
        f"sockets lost: {sums.losses}",
        *_table(totals),
    ]
    for promise, each in totals.promises.items():
        lines.append(f"{promise}: {each.calls} calls, {each.failed} failures")
        lines += [f"  seed {seed}: {why}" for seed, why in totals.failures[promise].items()]
    return "\n".join(lines) + "\n"


def _table(totals: CallTotals) -> Iterator[str]:
    rows: list[Sequence[str]] = [
        ("provider", "stalls", "late", "calls", "turns", "cut early", "cut late", "failed")
    ]
    rows += [
        (
            provider,
            stall.value,
            "single" if late else "",
            *map(str, (sums.calls, sums.turns, sums.early, sums.late, sums.failed)),
        )
        for (provider, stall, late), sums in sorted(totals.groups.items())
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        yield "  " + "  ".join(cells)
