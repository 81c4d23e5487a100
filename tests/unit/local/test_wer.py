"""Word error rate."""

import pytest

from worker.local.wer import lost_and_repeated, word_error_rate, words


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


@pytest.mark.parametrize(
    ("transcript", "expected"),
    [
        ("a b c d e f g h", (0, 0)),
        ("a b x d e g h", (0, 0)),  # a wrong word, and a missing one: the recognizer's errors
        ("a b x c y d e f g h", (0, 0)),
        ("a b f g h", (3, 0)),
        ("a b c d", (4, 0)),
        ("", (8, 0)),
        ("a b c d e c d e f g h", (0, 3)),
        ("a b c d e f g h e f g h", (0, 4)),
    ],
)
def test_lost_and_repeated_counts_passages(transcript: str, expected: tuple[int, int]) -> None:
    assert lost_and_repeated("A b c d. E f g h.", transcript) == expected
