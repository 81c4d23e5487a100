"""The report of a chaos run."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence

import msgspec

from tests.chaos.checker import WORD_RULES, Violation
from tests.chaos.plan import Plan
from tests.chaos.schedule import ScheduledFault

_SHOWN = 40
_WIDTH = 100


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did, and what it found."""

    plan: Plan
    seconds: float
    schedule: tuple[ScheduledFault, ...]
    """What was to be broken: when, in seconds from the first word, what, by which seed."""
    faults: dict[str, int]
    """How many of each kind were applied; the rest found nothing to break, or nobody speaking."""
    sessions: int
    turns: int
    """That were heard: one where two were said, if the service ended none in the pause between."""
    words: int
    events: int
    sockets: int
    """That reached `connected`."""
    kills: int
    next_event_ms_p50: int | None
    """From a kill -9 to the next event of a session it hit inside a turn."""
    next_event_ms_max: int | None
    long_turns: int
    """Said that were longer than audio may be late."""
    outages_in_turns: int
    """Sessions that an outage of the STT service longer than that met inside a turn, over all."""
    gaps: int
    """Announced, of audio that was too late."""
    gap_s: float
    """Audio they cover."""
    announced: int
    """Words they cover or touch."""
    excused: int
    """Words whose audio the producer appended late, which may be damaged."""
    violations: tuple[Violation, ...]
    log: tuple[str, ...]
    """What the nemesis did, and when."""

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return not self.violations


def quantile(ordered: Sequence[int], share: float) -> int | None:
    """Return the value below which that share of a sorted sequence lies; None of nothing."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))]


def json_of(report: Report) -> str:
    """Write everything as one JSON object on a line."""
    written = {"ok": report.ok, **msgspec.structs.asdict(report)}
    return msgspec.json.encode(written).decode() + "\n"


def text_of(report: Report) -> str:
    """Say it in words."""
    broken = Counter(violation.rule for violation in report.violations)
    faults = ", ".join(f"{name} {count}" for name, count in report.faults.items())
    words = ", ".join(f"{rule} {broken[rule]}" for rule in WORD_RULES)
    lines = [
        f"seed {report.plan.seed}, {report.seconds:.0f} s, text: {report.plan.text_style_name}",
        f"said: {report.sessions} sessions, {report.plan.turns} turns, {report.words} words",
        f"heard: {report.turns} turns, {report.events} events over {report.sockets} sockets",
        *_wrapped("schedule", [f"{strike.at_s:g} {strike.fault}" for strike in report.schedule]),
        f"faults: {sum(report.faults.values())} of {len(report.schedule)} ({faults or 'none'})",
        f"owner killed inside a turn: {_waits(report)}",
        f"words: {words}",
        f"turns longer than audio may be late: {report.long_turns}",
        f"sessions inside a turn as the STT service was away for longer: {report.outages_in_turns}",
        f"announced as late: {report.gaps} gaps, {report.gap_s:.1f} s, {report.announced} words",
    ]
    if report.excused:
        lines.append(f"words whose producer was late: {report.excused}")
    lines += [
        f"{violation.rule}: {violation.session} {violation.detail}"
        for violation in report.violations[:_SHOWN]
    ]
    if len(report.violations) > _SHOWN:
        lines.append(f"and {len(report.violations) - _SHOWN} more")
    lines.append("kept every promise" if report.ok else f"broke {len(report.violations)} promises")
    lines.append(f"again: python -m tests.chaos {report.plan.repeat}")
    return "\n".join(lines) + "\n"


def _wrapped(name: str, items: Sequence[str]) -> list[str]:
    """Write a list that may be long."""
    text = f"{name}: {', '.join(items) or 'none'}"
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _waits(report: Report) -> str:
    if report.next_event_ms_p50 is None:
        return "never"
    return f"next event p50 {report.next_event_ms_p50} ms, max {report.next_event_ms_max} ms"
