"""Detection of seconds in which the process stood still."""

import pytest

from worker.event_loop import MAX_STALLS, StallDetector


@pytest.fixture
def stalls() -> StallDetector:
    """Poll every tenth of a second for a second, except between 0.2 and 0.7."""
    stalls = StallDetector(0.0)
    for tenth in (1, 2, 7, 8, 9, 10):
        stalls.tick(tenth / 10)
    return stalls


@pytest.mark.parametrize(
    ("at", "earliest"),
    [
        (0.1, 0.1),
        (0.2, 0.2),
        (0.25, 0.2),  # received just before the poll that noticed the stall
        (0.7, 0.2),
        (0.75, 0.2),
        (0.85, 0.85),
        (1.0, 1.0),
    ],
)
def test_data_read_after_stall_may_be_late(
    stalls: StallDetector, at: float, earliest: float
) -> None:
    assert stalls.earliest_arrival(at) == earliest


def test_late_polls_are_no_stall() -> None:
    stalls = StallDetector(0.0)
    for fifth in range(50):
        stalls.tick(fifth / 5)
        assert stalls.earliest_arrival(fifth / 5) == fifth / 5


def test_poll_with_earlier_time_changes_nothing(stalls: StallDetector) -> None:
    stalls.tick(0.1)
    stalls.tick(1.1)
    assert stalls.earliest_arrival(1.1) == 1.1


def test_remembered_stalls_are_limited() -> None:
    stalls = StallDetector(0.0)
    for second in range(1, MAX_STALLS + 2):
        stalls.tick(second)
    assert stalls.earliest_arrival(1.0) == 1.0
    assert stalls.earliest_arrival(2.0) == 1.0
