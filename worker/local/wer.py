"""Word error rate: how far a transcript is from what was said."""

import re
from typing import Final

import msgspec

# Spelled one way only where both are common and neither is wrong.
_SPELLINGS: Final = {"mr": "mister", "mrs": "missus", "dr": "doctor", "metres": "meters"}


class WordErrors(msgspec.Struct, frozen=True):
    """The least edits that make the reference of what was heard, over its words."""

    errors: int
    words: int

    @property
    def rate(self) -> float:
        """Errors per word of the reference; above 1 if much was invented."""
        return self.errors / max(1, self.words)

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(self.errors + other.errors, self.words + other.words)


def words(text: str) -> list[str]:
    """Split text into words without case, punctuation and apostrophes; hyphens part words."""
    plain = re.sub(r"['\u2019]", "", text.lower())
    return [_SPELLINGS.get(word, word) for word in re.findall(r"[^\W_]+", plain)]


def word_errors(reference: str, heard: str) -> WordErrors:
    """Count words substituted, left out and invented, each as one error (Levenshtein)."""
    said = words(reference)
    row = list(range(len(said) + 1))
    for i, word in enumerate(words(heard), 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            cost = min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
            diagonal, row[j] = row[j], cost
    return WordErrors(row[-1], len(said))
