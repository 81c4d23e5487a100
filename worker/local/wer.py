"""Word error rate of a transcript against a reference."""

import re
from typing import Final

import msgspec

# Spellings that are normalized because both are common and correct.
_SPELLINGS: Final = {"mr": "mister", "mrs": "missus", "dr": "doctor", "metres": "meters"}


class WordErrors(msgspec.Struct, frozen=True):
    """Minimum number of edits from the transcript to the reference, and the reference's words."""

    errors: int
    words: int

    @property
    def rate(self) -> float:
        """Errors per word of the reference; above 1 if many words were inserted."""
        return self.errors / max(1, self.words)

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(self.errors + other.errors, self.words + other.words)


def words(text: str) -> list[str]:
    """Split text into words without case, punctuation and apostrophes; hyphens separate words."""
    plain = re.sub(r"['\u2019]", "", text.lower())
    return [_SPELLINGS.get(word, word) for word in re.findall(r"[^\W_]+", plain)]


def word_errors(reference: str, transcript: str) -> WordErrors:
    """Count substituted, deleted and inserted words, each as one error (Levenshtein)."""
    expected = words(reference)
    row = list(range(len(expected) + 1))
    for i, word in enumerate(words(transcript), 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(expected, 1):
            cost = min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
            diagonal, row[j] = row[j], cost
    return WordErrors(row[-1], len(expected))
