"""Notices: how often an error is published, and that every error is counted."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.notices import (
    GAP_INTERVAL_S,
    MAX_KINDS,
    OTHERS,
    Notices,
    NoticesState,
)


def _successor(notices: Notices) -> Notices:
    """Return the notices of a new owner."""
    return Notices(msgspec.json.decode(msgspec.json.encode(notices.state), type=NoticesState))


def test_error_is_published_as_its_count_doubles() -> None:
    notices = Notices(NoticesState())
    published = [notices.count("audio_malformed", "field `seq`") for _ in range(1_000)]
    assert [count for count in published if count] == [2**n for n in range(10)]
    assert [(each.seen, each.published) for each in notices.unpublished()] == [(1_000, 512)]
    assert not list(notices.unpublished())


def test_error_kinds_are_counted_apart_and_bounded() -> None:
    notices = Notices(NoticesState())
    assert [notices.count("a", str(subject)) for subject in range(MAX_KINDS)] == [1] * MAX_KINDS
    assert [notices.count("a", f"more {n}") for n in range(4)] == [1, 2, 0, 4]
    assert [each.subject for each in notices.state.tallies][-1] == OTHERS
    assert notices.count("a", "0") == 2


@given(st.lists(st.sampled_from(["count", "take over"]), max_size=60))
def test_error_counts_survive_takeover(steps: list[str]) -> None:
    notices = Notices(NoticesState())
    published = 0
    for step in steps:
        if step == "count":
            published = notices.count("a", "b") or published
        else:
            notices = _successor(notices)
    for tally in notices.unpublished():
        published = tally.seen
    assert published == steps.count("count")


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 20)), max_size=30))
def test_gap_lengths_add_up(gaps: list[tuple[int, float]]) -> None:
    notices = Notices(NoticesState())
    now = published = events = 0.0
    for ms, pause_s in gaps:
        now += pause_s
        due = [notices.missed(ms, now), notices.gap_due(now)]
        published += sum(due)
        events += sum(map(bool, due))
        notices = notices if ms % 7 else _successor(notices)
    rest = notices.gap_rest()
    assert published + rest == sum(ms for ms, _ in gaps)
    takeovers = sum(ms % 7 == 0 for ms, _ in gaps)
    assert events <= now / GAP_INTERVAL_S + 1 + takeovers


def _run(step_ms: int, count: int, chunk_ms: float = 100.0) -> tuple[Notices, list[int]]:
    """Count repeats that are appended at this interval; return which of them are published."""
    notices = Notices(NoticesState())
    at = [
        number
        for number in range(1, count + 1)
        if notices.repeated(f"{1_700_000_000_000 + number * step_ms}-0", chunk_ms)
    ]
    return notices, at


def test_long_run_of_repeats_is_published_as_it_doubles() -> None:
    notices, at = _run(100, 450)
    assert at == [50, 100, 200, 400]
    ended = notices.repeats_end(session_ends=False)
    assert ended is not None
    assert (ended.entries, ended.ms) == (450, 45_000)
    assert not notices.repeating


@pytest.mark.parametrize("session_ends", [False, True])
def test_resent_buffer_is_published_only_at_end(session_ends: bool) -> None:
    """A producer resends its buffer in one burst. Nothing is lost if new audio follows."""
    notices, at = _run(1, 300)
    assert not at
    assert (notices.repeats_end(session_ends=session_ends) is not None) == session_ends


def test_short_run_of_repeats_is_not_published() -> None:
    notices, at = _run(100, 49)
    assert not at
    assert notices.repeats_end(session_ends=True) is None


def test_run_of_repeats_survives_takeover() -> None:
    notices, _ = _run(100, 30)
    successor = _successor(notices)
    assert successor.repeating
    for number in range(31, 50):
        assert successor.repeated(f"{1_700_000_000_000 + number * 100}-0", 100) is None
    assert successor.repeated("1700000005000-0", 100) is not None
