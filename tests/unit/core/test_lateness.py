"""Lateness: the age of unsent audio, minus the time that replays took."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.lateness import Lateness
from worker.core.records import SentState


@pytest.mark.parametrize(
    ("limit_s", "age_s", "late"),
    [(5.0, 4.9, False), (5.0, 5.0, False), (5.0, 5.1, True), (0.0, 1e9, False)],
)
def test_lateness_is_age_without_replays(limit_s: float, age_s: float, late: bool) -> None:
    assert Lateness(limit_s, SentState()).is_late(0.0, age_s) is late


def test_replay_adds_no_lateness() -> None:
    lateness = Lateness(5.0, SentState(until=1_000))
    lateness.opened(0.0, 0)
    assert not lateness.is_late(20.0, 24.9)
    assert lateness.is_late(20.0, 25.1)
    lateness.progressed(20.0, 1_000)
    assert lateness.is_late(30.0, 25.1), "the replay is over"


def test_replays_add_up_over_sockets_and_owners() -> None:
    lateness = Lateness(5.0, SentState(until=1_000))
    lateness.opened(0.0, 0)
    lateness.closed(10.0, 500)
    lateness.opened(13.0, 0)
    state = lateness.state(20.0, 300)
    assert state == SentState(until=1_000, replayed_s=17.0)
    successor = Lateness(5.0, state)
    assert not successor.is_late(0.0, 21.9)
    assert successor.is_late(0.0, 22.1)


def test_replay_explains_only_its_own_delay() -> None:
    lateness = Lateness(5.0, SentState(until=1_000))
    lateness.opened(0.0, 0)
    lateness.limit_replay_time(20.0, 2.0)
    assert lateness.is_late(20.0, 7.1)
    assert not lateness.is_late(21.0, 7.9), "the replay goes on"
    lateness.progressed(22.0, 1_000)
    lateness.limit_replay_time(30.0, 0.0)
    assert not lateness.delayed_by_replays
    assert lateness.is_late(30.0, 5.1)


def test_socket_without_replay_explains_nothing() -> None:
    lateness = Lateness(5.0, SentState(until=1_000))
    lateness.opened(0.0, 1_000)
    lateness.closed(50.0, 2_000)
    assert lateness.state(60.0, 1_500) == SentState(until=2_000)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["opened", "progressed", "closed", "limited"]),
        st.floats(0, 100),
        st.integers(0, 10_000),
    )
)


@given(STEPS, st.integers(0, 10_000))
def test_sent_position_never_goes_back(steps: list[tuple[str, float, int]], until: int) -> None:
    lateness = Lateness(5.0, SentState(until=until))
    now, most_s = 0.0, 0.0
    for kind, seconds, fed in steps:
        now += seconds
        before = lateness.sent_until
        match kind:
            case "opened":
                lateness.opened(now, fed)
            case "progressed":
                lateness.progressed(now, fed)
            case "closed":
                lateness.closed(now, fed)
            case _:
                lateness.limit_replay_time(now, seconds)
        most_s += seconds
        assert lateness.sent_until >= before
        state = lateness.state(now, fed)
        assert state.until == max(lateness.sent_until, fed)
        assert 0 <= state.replayed_s <= most_s + 0.001
        assert not lateness.is_late(now, 5.0)
