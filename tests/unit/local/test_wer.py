"""Word error rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.local.wer import WordErrors, word_errors, words

sentences = st.lists(st.sampled_from(["go", "ten", "stop", "of"]), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  And so, my fellow Americans! ", ["and", "so", "my", "fellow", "americans"]),
        ("an ill-disposed man", ["an", "ill", "disposed", "man"]),
        ("rose's rose\u2019s thy_self", ["roses", "roses", "thy", "self"]),
        ("Mr. Dashwood, 10 metres", ["mister", "dashwood", "10", "meters"]),
        ("na\u00efve", ["na\u00efve"]),
    ],
)
def test_words_are_normalised(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("reference", "transcript", "errors"),
    [
        ("one two three", "One, two: three.", 0),
        ("one two three", "one too three", 1),
        ("one two three", "one three", 1),
        ("one two three", "well one two three", 1),
        ("one two three", "", 3),
        ("", "you", 1),
        ("a b c d", "b c d e", 2),
    ],
)
def test_word_errors_are_minimal(reference: str, transcript: str, errors: int) -> None:
    assert word_errors(reference, transcript) == WordErrors(errors, len(words(reference)))


def test_word_error_rate_of_sum() -> None:
    total = word_errors("one two three four", "one two three") + word_errors("", "you")
    assert total == WordErrors(2, 4)
    assert total.rate == 0.5
    assert WordErrors(0, 0).rate == 0


@given(sentences, sentences, sentences)
def test_word_errors_are_a_distance(a: str, b: str, c: str) -> None:
    assert word_errors(a, a).errors == 0
    assert word_errors(a, b).errors == word_errors(b, a).errors
    assert word_errors(a, c).errors <= word_errors(a, b).errors + word_errors(b, c).errors
