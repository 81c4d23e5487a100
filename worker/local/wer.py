"""Word error rate of transcripts against references."""

import re
from collections.abc import Sequence
from typing import Final

import jiwer

# Spellings that are normalized because both are common and correct.
_SPELLINGS: Final = {"mr": "mister", "mrs": "missus", "dr": "doctor", "metres": "meters"}


def words(text: str) -> list[str]:
    """Split text into words without case, punctuation and apostrophes; hyphens separate words."""
    plain = re.sub(r"['\u2019]", "", text.lower())
    return [_SPELLINGS.get(word, word) for word in re.findall(r"[^\W_]+", plain)]


def word_error_rate(references: Sequence[str], transcripts: Sequence[str]) -> float:
    """Return the number of wrong, missing and additional words per word of all references."""
    expected, actual = (
        [" ".join(words(text)) for text in each] for each in (references, transcripts)
    )
    return float(jiwer.wer(expected, actual))
