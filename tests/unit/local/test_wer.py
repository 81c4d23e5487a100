"""Word error rate."""

import pytest

from worker.local.wer import word_error_rate, words


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
def test_word_error_rate_counts_edits(reference: str, transcript: str, errors: int) -> None:
    assert word_error_rate([reference], [transcript]) == errors / max(1, len(words(reference)))


def test_word_error_rate_of_several_texts() -> None:
    assert word_error_rate(["one two three four", ""], ["one two three", "you"]) == 2 / 4
    assert word_error_rate([""], [""]) == 0
