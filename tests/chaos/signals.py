"""Marks and forced ends of a chaos run: what was appended, and what must be published."""

from collections.abc import Iterator, Sequence

import msgspec

from schemas.turns import Event, SessionMark, TurnEnd
from worker.bench.checker import Expected, Violation
from worker.local.emulator.engines.script_words import words_of

MARK_SHARE = 0.05
FORCED_END_SHARE = 0.01
"""Share of the chunks with a signal; only chunks that end outside of words force an end."""


class Signals(msgspec.Struct):
    """Signals that a producer appended."""

    marks: list[dict[str, int]] = msgspec.field(default_factory=list)
    forced_ends_ms: list[float] = msgspec.field(default_factory=list)
    """Places of the forced ends in the session's audio."""


def signal_violations(
    sent: Signals, expected: Expected, events: Sequence[Event]
) -> Iterator[Violation]:
    """Yield marks that are lost, repeated or moved, and turns that go on after a forced end."""
    marks = [event.mark for event in events if isinstance(event, SessionMark)]
    if marks != sent.marks:
        yield Violation(expected.session, "bus", f"marks {marks} instead of {sent.marks}")
    turns = [
        words_of(event.transcript, spaced=expected.style.spaced)
        for event in events
        if isinstance(event, TurnEnd)
    ]
    for ms in sent.forced_ends_ms:
        before = sum(span.end <= ms + 1 for span in expected.spans)
        for turn in turns:
            numbers = [word for word in turn if isinstance(word, int)]
            if numbers and numbers[0] < before <= numbers[-1]:
                detail = f"the turn of {numbers} goes on after the forced end at {ms:g} ms"
                yield Violation(expected.session, "turn", detail)
