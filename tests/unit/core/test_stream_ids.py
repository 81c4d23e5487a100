"""Entry ids: two integers, not text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import stream_ids

PART = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**64 - 1])
ID = st.builds("{}-{}".format, PART, PART)


@pytest.mark.parametrize(
    ("entry_id", "before", "after"),
    [
        ("0-0", "0-0", "0-1"),
        ("0-1", "0-0", "0-2"),
        ("5-0", "4-18446744073709551615", "5-1"),
        ("4-18446744073709551615", "4-18446744073709551614", "5-0"),
        ("1700000000000-9", "1700000000000-8", "1700000000000-10"),
    ],
)
def test_next_and_previous_id(entry_id: str, before: str, after: str) -> None:
    assert stream_ids.predecessor(entry_id) == before
    assert stream_ids.successor(entry_id) == after


@given(ID)
def test_no_id_lies_between_neighbours(entry_id: str) -> None:
    ms, seq = stream_ids.order(entry_id)
    assert stream_ids.milliseconds(entry_id) == ms
    assert f"{ms}-{seq}" == entry_id
    assert stream_ids.predecessor(stream_ids.successor(entry_id)) == entry_id
    if entry_id != "0-0":
        assert stream_ids.successor(stream_ids.predecessor(entry_id)) == entry_id
        assert stream_ids.order(stream_ids.predecessor(entry_id)) < stream_ids.order(entry_id)
    assert stream_ids.order(entry_id) < stream_ids.order(stream_ids.successor(entry_id))


def test_ids_compare_as_numbers() -> None:
    given_ids = ["10-2", "9-11", "10-10", "9-2", "10"]
    assert sorted(given_ids, key=stream_ids.order) == ["9-2", "9-11", "10", "10-2", "10-10"]


@pytest.mark.parametrize("text", ["", "-", "a-1", "1-a", "1-2-3", "$", "+", "1.5-0"])
def test_invalid_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        stream_ids.order(text)
