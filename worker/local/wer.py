"""Word error rate of transcripts against references."""

import re
from collections.abc import Sequence
from typing import Final

import jiwer

_PASSAGE: Final = 3
"""Minimum words of a passage. A recognizer alone misses or adds single words."""

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


def lost_and_repeated(reference: str, transcript: str) -> tuple[int, int]:
    """Return the number of words in missing passages, and in additional ones."""
    expected, actual = (" ".join(words(text)) for text in (reference, transcript))
    (chunks,) = jiwer.process_words(expected, actual).alignments
    lost = repeated = 0
    for chunk in chunks:
        missing = chunk.ref_end_idx - chunk.ref_start_idx
        additional = chunk.hyp_end_idx - chunk.hyp_start_idx
        if chunk.type == "delete" and missing >= _PASSAGE:
            lost += missing
        elif chunk.type == "insert" and additional >= _PASSAGE:
            repeated += additional
    return lost, repeated
