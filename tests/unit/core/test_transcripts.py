"""Texts of one turn from separate transcriptions."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.transcripts import join, new_text, same_words

TALK = [f"word{number}" for number in range(30)]


@pytest.mark.parametrize(
    ("known", "received", "caught_up", "news"),
    [
        ("one two", "one two", 2, ""),
        ("one two", "one two three", 2, " three"),
        ("one two", "one two three", 1, " three"),
        ("one two", "one two three", 3, " three"),
        ("one two", "one", 1, ""),
        ("one two", "", 0, ""),
        # A message that is so late that the estimate is 0.
        ("one two three", "One, two, t", 0, ""),
        ("Donaudampfschifffahrt", "Don", 0, ""),
        ("w0w1w2w3w4", "w0", 0, ""),
        ("so", "!?", 1, ""),
        ("", "one two", 0, "one two"),
        ("twenty five thousand three hundred", "25,300 dollars please", 1, " dollars please"),
        ("I have got to", "I've got to go", 3, " go"),
        ("colour of it", "color of it is red", 3, " is red"),
        ("(Paris) (Rome)", "Paris. Rome. Oslo.", 1, " Oslo."),
        ("(Paris) (Rome)", "Paris. Rome.", 1, ""),
        ("so ... well", "so \u2013 well then", 2, " then"),
        ("won", "one", 1, ""),
        ("won", "one too", 1, " too"),
        ("one\ttwo", "1\ttwo  three", 2, "  three"),
        (" ".join(TALK), " ".join(TALK), 0, ""),  # all of it in one message
        (" ".join(TALK), " ".join([*TALK, "eh"]), 0, " eh"),
        (" ".join(TALK), " ".join(TALK).upper(), 0, ""),
        (" ".join(TALK), " ".join(TALK[::2]), 3, ""),
    ],
)
def test_new_text_is_found(known: str, received: str, caught_up: int, news: str) -> None:
    assert new_text(known, received, caught_up) == news


@given(
    known=st.integers(0, 120),
    more=st.integers(0, 5),
    astray=st.integers(-1, 1),
    seed=st.integers(0, 1_000_000),
)
def test_reworded_words_are_neither_lost_nor_repeated(
    known: int, more: int, astray: int, seed: int
) -> None:
    rng = random.Random(seed)

    def worded(count: int) -> str:
        return " ".join(
            rng.choice(("w{}", "w{}~", "{}", "(w{})", "W{}.")).format(1_000 + number)
            for number in range(count)
        )

    received = worded(known + more)
    caught_up = min(known + more, max(0, known + astray))
    news = new_text(worded(known), received, caught_up)
    assert len(news.split()) == more
    assert received.endswith(news)


@given(st.text(), st.text(), st.integers(0, 50))
def test_new_text_is_suffix_of_received_text(known: str, received: str, caught_up: int) -> None:
    assert received.endswith(new_text(known, received, caught_up))


@pytest.mark.parametrize(
    ("before", "after", "whole"),
    [
        ("", "one", "one"),
        ("one", "", "one"),
        ("one", "two", "one two"),
        ("one", " two", "one two"),
        ("one ", "two", "one two"),
        ("今日は", "いい天気", "今日はいい天気"),
        ("今日は", "sunny", "今日はsunny"),
    ],
)
def test_texts_are_joined(before: str, after: str, whole: str) -> None:
    assert join(before, after) == whole


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        ("", "", True),
        ("hello", "Hello.", True),
        ("one two", "One, two?", True),
        ("\u65e5\u672c", "\u65e5\u672c\u3002", True),
        ("hello", "hello there", False),
        ("100", "120", False),
        ("", "a", False),
    ],
)
def test_words_ignore_case_and_punctuation(text: str, other: str, same: bool) -> None:
    assert same_words(text, other) is same


@given(st.text(max_size=8), st.text(max_size=8))
def test_continued_text_needs_letters_to_say_more(text: str, more: str) -> None:
    letters = [each for each in more if each.isalnum()]
    assert same_words(text + more, text) is (not letters)
    assert same_words(text, text + more) is (not letters)
