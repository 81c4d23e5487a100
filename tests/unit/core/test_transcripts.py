"""Texts of one turn that were transcribed apart."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.transcripts import join, new_text, same_words

TALK = [f"word{number}" for number in range(30)]


@pytest.mark.parametrize(
    ("known", "heard", "caught_up", "news"),
    [
        ("one two", "one two", 2, ""),
        ("one two", "one two three", 2, " three"),
        ("one two", "one two three", 1, " three"),
        ("one two", "one two three", 3, " three"),
        ("one two", "one", 1, ""),
        ("one two", "", 0, ""),
        ("", "one two", 0, "one two"),
        ("twenty five thousand three hundred", "25,300 dollars please", 1, " dollars please"),
        ("I have got to", "I've got to go", 3, " go"),
        ("colour of it", "color of it is red", 3, " is red"),
        ("won", "one", 1, ""),
        ("won", "one too", 1, " too"),
        ("one\ttwo", "1\ttwo  three", 2, "  three"),
        (" ".join(TALK), " ".join(TALK), 0, ""),  # all of it in one message
        (" ".join(TALK), " ".join([*TALK, "eh"]), 0, " eh"),
        (" ".join(TALK), " ".join(TALK).upper(), 0, ""),
        (" ".join(TALK), " ".join(TALK[::2]), 3, ""),
    ],
)
def test_what_is_new(known: str, heard: str, caught_up: int, news: str) -> None:
    assert new_text(known, heard, caught_up) == news


@given(
    known=st.integers(0, 120),
    more=st.integers(0, 5),
    astray=st.integers(-1, 1),
    seed=st.integers(0, 1_000_000),
)
def test_words_reworded_one_by_one_are_neither_lost_nor_repeated(
    known: int, more: int, astray: int, seed: int
) -> None:
    rng = random.Random(seed)

    def worded(count: int) -> str:
        return " ".join(
            rng.choice(("w{}", "w{}~", "{}")).format(1_000 + number) for number in range(count)
        )

    heard = worded(known + more)
    caught_up = min(known + more, max(0, known + astray))
    news = new_text(worded(known), heard, caught_up)
    assert len(news.split()) == more
    assert heard.endswith(news)


@given(st.text(), st.text(), st.integers(0, 50))
def test_news_is_the_end_of_what_was_heard(known: str, heard: str, caught_up: int) -> None:
    assert heard.endswith(new_text(known, heard, caught_up))


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
def test_join(before: str, after: str, whole: str) -> None:
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
def test_case_and_punctuation_are_no_words(text: str, other: str, same: bool) -> None:
    assert same_words(text, other) is same


@given(st.text(max_size=8), st.text(max_size=8))
def test_a_text_that_goes_on_says_more_if_what_follows_has_letters(text: str, more: str) -> None:
    letters = [each for each in more if each.isalnum()]
    assert same_words(text + more, text) is (not letters)
    assert same_words(text, text + more) is (not letters)
