"""Marks and forced ends in a simulated session, and what consumers must see of them."""

import random
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from tests.simulation.speech import Word

MARKS = 8
FORCED_ENDS = 5


class Signal(NamedTuple):
    """A mark or a forced end at a millisecond of the call."""

    at_ms: int
    mark: dict[str, Any] | None
    """The mark; None for a forced end."""
    with_audio: bool
    """Whether it is in the entry of the audio before it."""
    word: int | None = None
    """Number of the word that ends there, of a forced end."""

    @property
    def fields(self) -> dict[bytes, bytes]:
        """Its fields in an audio entry."""
        if self.mark is None:
            return {b"turn_end": b"1"}
        return {b"mark": msgspec.json.encode(self.mark)}


def draw_signals(rng: random.Random, words: Sequence[Word]) -> list[Signal]:
    """Draw marks at any place, and forced ends after words, in the order of their places."""
    signals = [
        Signal(words[number].ends, None, rng.random() < 0.5, number)
        for number in rng.sample(range(len(words)), min(FORCED_ENDS, len(words)))
    ]
    places = [rng.randint(1, words[-1].ends) for _ in range(MARKS - 2)]
    places += [signal.at_ms for signal in signals[:2]]  # a mark right before or behind a forced end
    signals += [Signal(at_ms, {}, rng.random() < 0.5) for at_ms in places]
    rng.shuffle(signals)
    signals.sort(key=lambda signal: signal.at_ms)
    # Fields of one entry: the mark is published before the turn ends, whichever was drawn first.
    return [
        signal if signal.mark is None else signal._replace(mark={"nth": nth})
        for nth, signal in enumerate(signals)
    ]


def signal_violations(
    signals: Sequence[Signal], events: Sequence[dict[str, Any]], *, gaps: bool
) -> list[str]:
    """Compare the events with the signals; with `gaps`, a forced end may have another reason."""
    violations = []
    expected = [(signal.mark, signal.at_ms) for signal in signals if signal.mark is not None]
    marks = [
        (event["mark"], event["audio_ms"]) for event in events if event["type"] == "session.mark"
    ]
    if marks != expected:
        violations.append(f"marks {marks} instead of {expected}")
    turns = [
        (
            event["reason"],
            [int(number) for number in re.findall(r"w(\d+)", event["transcript"].lower())],
        )
        for event in events
        if event["type"] == "turn.end"
    ]
    for word in (signal.word for signal in signals if signal.word is not None):
        for reason, turn in turns:
            if turn and turn[0] <= word < turn[-1]:
                violations.append(f"turn {turn} goes on after word {word}")
            if not gaps and word in turn and reason != "forced":
                violations.append(f"turn {turn} ends by {reason}")
    forced = sum(reason == "forced" for reason, _ in turns)
    if forced > sum(signal.mark is None for signal in signals):
        violations.append(f"{forced} turns end by force")
    return violations
