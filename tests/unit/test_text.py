"""Text on a terminal: scripts are kept, control characters are replaced, columns align."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cli.table import table
from worker.text import fitted, padded, printable, width


@pytest.mark.parametrize(
    "text",
    [
        "12\u00a0000\u202f€ and\u2009so\u3000on",  # spaces
        "می\u200cروم",  # Persian, with a non-joiner
        "क्\u200dष",  # Hindi, with a joiner
        "👩\u200d👩\u200d👧 ❤\ufe0f 🏴\U000e0067\U000e0062\U000e007f",  # emoji and tags
        "a\u200fב\u200e \u061c \u2060\ufeff\u00ad",  # direction marks, joiner, soft hyphen
        "\ue0b0 \U0001fae8 \U0001fa8e",  # private use, letters newer than this Python
        "cafe\u0301 한국어 ภาษาไทย",
        "\u2067عربي\u2069 \u202bعربي\u202c",  # an isolate and an embedding, closed
    ],
)
def test_text_of_every_script_is_unchanged(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x07\x00\t\r\n\x7f", "�[2J������"),
        ("\x9b31m\x85", "�31m�"),  # C1: escape sequences of one character
        ("a\u2028b\u2029", "a�b�"),
        ("\udcff", "�"),
        ("abc\u202edcb\u202d", "abc�dcb�"),  # overrides, which display one text as another
        ("\u2066a", "\u2066a\u2069"),  # left open: closed
        ("\u202aa\u2067b", "\u202aa\u2067b\u2069\u202c"),
        ("a\u2069\u202c", "a��"),  # nothing to close
        ("\u2066a\u202bb\u2069c\u202c", "\u2066a\u202bb\u2069c�"),
    ],
)
def test_control_characters_are_replaced(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters() | st.sampled_from("\x1b\x9b\n\u202a\u202e\u2066\u2069\u202c")))
def test_printable_text_is_safe_and_stable(text: str) -> None:
    shown = printable(text)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202d\u202e\ud800-\udfff]", shown)
    assert printable(shown) == shown
    shown.encode()


@given(st.text(), st.integers(1, 40))
def test_fitted_text_fits_its_width(text: str, columns: int) -> None:
    text = printable(text)
    assert width(fitted(text, columns)) <= columns
    if width(text) <= columns:
        assert fitted(text, columns) == text


def test_long_text_keeps_start_and_end() -> None:
    assert fitted("abcdefghij", 5) == "ab…ij"
    assert fitted("日本語テキスト", 6) == "日…ト"
    assert fitted("👩\u200d👩\u200d👧abcdef", 5) == "👩\u200d👩\u200d👧…ef"


def test_width_is_counted_as_terminal_does() -> None:
    assert [width(text) for text in ("abc", "日本", "cafe\u0301", "❤\ufe0f", "می\u200cروم")] == [
        *(3, 4, 4, 2, 5)
    ]
    assert padded("日本", 6) == "日本  "
    assert table(["A", "B"], [["日本", "1"], ["abc", "2"]]) == "A     B\n日本  1\nabc   2"
