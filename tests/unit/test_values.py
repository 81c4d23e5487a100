"""Values in the spellings that users write."""

from contextlib import suppress
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from schemas import Encoding
from worker.values import from_text, from_toml

Whole = Annotated[int, Meta(ge=0, le=10_000)]
Number = Annotated[float, Meta(ge=0, le=10_000)]
Level = Literal["debug", "info"]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        *[(text, bool, True) for text in ("true", "True", "TRUE", "yes", "YES", "on", "1", " on ")],
        *[(text, bool, False) for text in ("false", "False", "no", "No", "off", "OFF", "0", "0\n")],
        *[(text, Level, "info") for text in ("info", "INFO", " Info ")],
        ("PCM_MULAW", Encoding, Encoding.PCM_MULAW),
        *[(text, Whole, 5_000) for text in ("5000", "5_000", "5e3", "5000.0", " 5000 ", "+5000")],
        *[(text, Number, 5.0) for text in ("5", "5.0", "5e0", ".5e1", "\t5 ")],
        (" a b ", str, "a b"),
        ("5", float | None, 5.0),
    ],
)
def test_text_is_parsed_as_value(text: str, kind: object, value: object) -> None:
    read = from_text(text, kind)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("kind", [bool, Whole, Number, Level, Encoding, float | None])
@pytest.mark.parametrize(
    "text", ["", "5s", "0x10", "nan", "inf", "-inf", "1e999", "tru", "9" * 5_000, "1,5"]
)
def test_invalid_text_is_refused(text: str, kind: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_text(text, kind)


@pytest.mark.parametrize(
    ("value", "kind", "read"),
    [
        ("INFO", Level, "info"),
        ("yes", bool, True),
        (True, bool, True),
        (5e3, Whole, 5_000),
        (5, Number, 5.0),
        (" a ", str, "a"),
    ],
)
def test_toml_value_is_accepted(value: object, kind: object, read: object) -> None:
    assert from_toml(value, kind) == read


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("5", Whole),  # a number in quotes
        ("5", Number),
        (5.5, Whole),
        (float("nan"), Number),
        (float("inf"), float),
        (10**400, Number),
        (1, bool),
        (True, Whole),
        ([], str),
        ({}, bool),
    ],
)
def test_toml_value_of_wrong_type_is_refused(value: object, kind: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_toml(value, kind)


@given(st.text(), st.sampled_from([bool, Whole, Number, Level, Encoding, str, float]))
def test_any_text_is_a_value_or_a_value_error(text: str, kind: Any) -> None:
    with suppress(ValueError):
        from_text(text, kind)
