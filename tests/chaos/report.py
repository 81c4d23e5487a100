"""ChaosReport of a chaos run."""

from textwrap import wrap

import msgspec

from tests.chaos.faults import ScheduledFault
from tests.chaos.plan import ChaosPlan
from worker.bench.checker import Violation, broken_words

_SHOWN = 40


class ChaosReport(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics and violations of a run."""

    plan: ChaosPlan
    seconds: float
    schedule: tuple[ScheduledFault, ...]
    """Scheduled faults: time in seconds from the first word, name and seed."""
    faults: dict[str, int]
    """Number of applied faults by kind; the others found no target."""
    sessions: int
    turns: int
    """Number of published turns; the provider may merge two turns if it misses the pause."""
    words: int
    events: int
    sockets: int
    """Number of sockets that received `connected`."""
    moves: dict[str, int]
    """Number of changes of a session's provider, by both providers and the place."""
    kills: int
    next_event_ms_p50: int | None
    """Time from a SIGKILL to the next event of an affected session inside a turn."""
    next_event_ms_max: int | None
    long_turns: int
    """Number of turns longer than `max_lag_s`."""
    outages_in_turns: int
    """Number of sessions inside a turn when a provider outage longer than `max_lag_s` began."""
    gaps: int
    """Number of gap events for audio that was too late."""
    gap_s: float
    """Seconds of audio in these gaps."""
    announced: int
    """Number of words that these gaps cover or touch."""
    excused: int
    """Number of words whose audio the producer appended late, which may be damaged."""
    violations: tuple[Violation, ...]
    log: tuple[str, ...]
    """Log of the injected faults."""

    @property
    def ok(self) -> bool:
        """Whether there are no violations."""
        return not self.violations


def json_of(report: ChaosReport) -> str:
    """Return the report as one JSON object on a line."""
    written = {"ok": report.ok, **msgspec.structs.asdict(report)}
    return msgspec.json.encode(written).decode() + "\n"


def text_of(report: ChaosReport) -> str:
    """Return the report as plain text."""
    faults = ", ".join(f"{name} {count}" for name, count in report.faults.items())
    schedule = ", ".join(f"{fault.at_s:g} {fault.kind}" for fault in report.schedule) or "none"
    waits = f"next event p50 {report.next_event_ms_p50} ms, max {report.next_event_ms_max} ms"
    lines = [
        f"seed {report.plan.seed}, {report.seconds:.0f} s, text: {report.plan.text_style_name}",
        f"sent: {report.sessions} sessions, {report.plan.turns} turns, {report.words} words",
        f"received: {report.turns} turns, {report.events} events over {report.sockets} sockets",
        *wrap(f"schedule: {schedule}", 100, subsequent_indent="  ", break_on_hyphens=False),
        f"faults: {sum(report.faults.values())} of {len(report.schedule)} ({faults or 'none'})",
        f"moves: {', '.join(f'{move} {count}' for move, count in report.moves.items()) or 'none'}",
        f"owner killed inside a turn: {waits if report.next_event_ms_max is not None else 'never'}",
        f"words: {broken_words(report.violations)}",
        f"turns longer than the maximum lag: {report.long_turns}",
        f"sessions inside a turn at a provider outage longer than that: {report.outages_in_turns}",
        f"dropped as too late: {report.gaps} gaps, {report.gap_s:.1f} s, {report.announced} words",
    ]
    if report.excused:
        lines.append(f"words delayed by the producer: {report.excused}")
    lines += map(str, report.violations[:_SHOWN])
    if len(report.violations) > _SHOWN:
        lines.append(f"and {len(report.violations) - _SHOWN} more")
    lines.append("passed" if report.ok else f"FAILED: {len(report.violations)} violations")
    lines.append(f"repeat: python -m tests.chaos {report.plan.repeat}")
    return "\n".join(lines) + "\n"
