"""What a finished run must show: words, order of events, marks, and the end of every session."""

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from schemas.turns import Event, SessionEnded, SessionError, TurnEagerEnd, TurnEnd, TurnUpdate
from tests.chaos.script import ScriptedSession, spans
from tests.chaos.signals import Signals, signal_violations
from tests.simulation.fleet.bad_entries import BAD_AUDIO
from tests.simulation.fleet.history import Finding
from tests.simulation.fleet.plan import MAX_LATE_S, FleetPlan, FleetSession
from tests.simulation.fleet.rejections import AppendedAudio, bad_audio_findings
from worker.bench.checker import Appended, Expected, Violation, ended_words, violations
from worker.local.emulator.engines.script_text import STYLES
from worker.local.emulator.engines.script_words import WORD_MS
from worker.session.receiver import MAX_FLUSH_ATTEMPTS

_CUTS_A_FLUSH: Final = re.compile(r"@flush|@between-turns")
"""Provider faults that may cut a socket that flushes, also one whose turn has not started."""


class Sent(NamedTuple):
    """What the producer of a session appended."""

    chunks: Sequence[Appended] = ()
    torn: frozenset[int] = frozenset()
    """Words inside which the producer paused, because Redis rejected the append."""
    signals: Signals = Signals()
    complete: bool = True
    """Whether everything was appended, the `end` too."""
    over: bool = False
    """Whether Redis rejected the rest, because the session had ended."""
    forgotten: bool = False
    """Whether Redis lost some of it in a failover."""
    bad_ids: Sequence[str] = ()
    """Ids of the bad entries in its audio."""


class Published(NamedTuple):
    """What consumers of a session read."""

    events: Sequence[Event]
    """Events in the stream of the lane."""
    own_events: Sequence[Event] | None = None
    """Events in the session's own stream; None if it asked for none."""


def session_findings(
    plan: FleetPlan, session: FleetSession, sent: Sent, published: Published
) -> Iterator[Finding]:
    """Yield what is wrong with the events of one session."""
    script, events = session.script, published.events
    if sent.forgotten:
        # Guarantees, "Not promised": more than Redis remembers. What it does remember is in order.
        if not events:
            return  # perhaps it forgot the session
        expected = Expected(session=script.name, words=script.words, style=STYLES[plan.text_style])
        found = violations(expected, events)
        yield from (_finding(each) for each in found if each.rule in ("seq", "run"))
        return
    # A session that no worker can run ends while its producer still appends.
    if not sent.complete and not (sent.over and session.always_crashes):
        yield Finding("stuck", script.name, "its producer could not append everything")
        return
    if not any(isinstance(event, SessionEnded) for event in events):
        last = f"the last of {len(events)} is {events[-1]}" if events else "it has no events"
        yield Finding("stuck", script.name, f"it did not end; {last}")
        return
    expected = Expected(
        session=script.name,
        words=script.words,
        torn=sent.torn,
        spans=spans(script),
        chunks=tuple(sent.chunks),
        max_lag_s=plan.max_lag_s,
        style=STYLES[plan.text_style],
    )
    found = [each for each in violations(expected, events) if not _is_revision(each, events)]
    if plan.hasty_share:
        most = _most_repeated(plan)
        found = [each for each in found if not _is_repeated_at_a_cut(each, found, most)]
    if _lost_flushes(plan) >= MAX_FLUSH_ATTEMPTS:
        found = [each for each in found if not _is_end_without_answer(each)]
    if sent.torn and not expected.style.spaced:
        unknown = _words_after_torn(script, sent.torn)
        found = [each for each in found if not _is_lost_word(each, unknown)]
    if session.bad_audio is not None:
        code = BAD_AUDIO[session.bad_audio].code
        found = [each for each in found if not each.detail.startswith(f"{code}: ")]
    failed = any(isinstance(each, SessionEnded) and each.reason == "error" for each in events)
    if session.always_crashes and failed:  # its turns may be fewer than in the script
        yield from _crashed_findings(expected, found, events)
    else:
        yield from map(_finding, found)
        yield from bad_audio_findings(AppendedAudio(session, sent.bad_ids), events)
        yield from map(_finding, signal_violations(sent.signals, expected, events))
    if published.own_events is not None and published.own_events != events:
        yield Finding("bus", script.name, "its own stream differs from the stream of the lane")


def _lost_flushes(plan: FleetPlan) -> int:
    """Return how many sockets providers may cut while a worker flushes the last audio."""
    specs = [fault.spec for fault in plan.faults if _CUTS_A_FLUSH.search(fault.spec)]
    return sum(int(spec.rpartition("count=")[2]) for spec in specs)


def _is_end_without_answer(violation: Violation) -> bool:
    """Return whether a worker gave up a flush, and reported the audio that no text covers."""
    return violation.rule == "reported" and "(watchdog)" in violation.detail


def _most_repeated(plan: FleetPlan) -> int:
    """Return how many words in a row a replay may repeat that divides the audio in another way.

    The provider sends no times, so a worker compares how much it had sent when texts arrived. An
    end that a replay has one word sooner may seem to have that word. On a slower socket these are
    the words of the additional lag (guarantees, "How exact the end of a turn is").
    """
    if not any(fault.kind == "provider-slow" for fault in plan.faults):
        return 1
    return 1 + int(MAX_LATE_S * plan.replay_speed * 1_000 / WORD_MS)


def _is_repeated_at_a_cut(violation: Violation, found: Sequence[Violation], most: int) -> bool:
    """Return whether a word is repeated once, as one of at most `most` in a row."""
    repeated = {int(each.detail.split()[1]) for each in found if each.rule == "repeated"}
    if violation.rule != "repeated" or not violation.detail.endswith(" 2 times"):
        return False
    first = last = int(violation.detail.split()[1])
    while first - 1 in repeated:
        first -= 1
    while last + 1 in repeated:
        last += 1
    return last - first < most


def _words_after_torn(script: ScriptedSession, torn: frozenset[int]) -> set[int]:
    """Return the words after a torn one, up to the end of its turn.

    A replay transcribes a torn word in another way. Without separators the text of a turn is one
    word, so the rest of it cannot be aligned.
    """
    found, first = set[int](), 0
    for turn in script.turns:
        words = range(first, first + len(turn.pauses_ms) + 1)
        first = words.stop
        found.update(range(min(torn.intersection(words), default=first), first))
    return found


def _is_lost_word(violation: Violation, words: set[int]) -> bool:
    return violation.rule == "lost" and int(violation.detail.split()[1]) in words


def _crashed_findings(
    expected: Expected, found: Sequence[Violation], events: Sequence[Event]
) -> Iterator[Finding]:
    """Yield what is wrong with a session at which workers fail again and again.

    It ends with an error. Until then its words are published as those of any other: no word is
    lost before the last one that is published.
    """
    words = ended_words(events, expected.style)
    last = max((word for word in words if isinstance(word, int)), default=-1)
    for violation in found:
        if violation.rule == "lost" and int(violation.detail.split()[1]) > last:
            continue
        if violation.detail.startswith(("internal: ", "ended (error)")):
            continue
        yield _finding(violation)
    errors = [each for each in events if isinstance(each, SessionError) and each.fatal]
    if [error.code for error in errors] != ["internal"]:
        detail = f"workers cannot run it, and its errors are {errors}"
        yield Finding("end", expected.session, detail)


def _is_revision(violation: Violation, events: Sequence[Event]) -> bool:
    """Return whether a text got shorter only at its turn's end, by a provider that revises.

    Guarantees, "events": only the definitive text of a `turn.end` may be shorter (`flux`).
    """
    if violation.rule != "shrunk":
        return False
    number = int(violation.detail.split()[1].rstrip(":"))
    lengths = [
        len(event.transcript)
        for event in events
        if isinstance(event, TurnUpdate | TurnEagerEnd) and event.turn == number
    ]
    end = next(each for each in events if isinstance(each, TurnEnd) and each.turn == number)
    return end.provider == "flux" and lengths == sorted(lengths)


def _finding(violation: Violation) -> Finding:
    return Finding(violation.rule, violation.session, violation.detail)
