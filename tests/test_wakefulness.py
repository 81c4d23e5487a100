"""Seconds that a process was awake."""

import pytest

from worker.wakefulness import REMEMBERED, Wakefulness


@pytest.fixture
def wakefulness() -> Wakefulness:
    """Look every tenth of a second for a second, but not between 0.2 and 0.7."""
    wakefulness = Wakefulness(0.0)
    for tenth in (1, 2, 7, 8, 9, 10):
        wakefulness.look(tenth / 10)
    return wakefulness


@pytest.mark.parametrize(
    ("at", "earliest"),
    [
        (0.1, 0.1),
        (0.2, 0.2),
        (0.25, 0.2),  # taken in just before the look that noticed
        (0.7, 0.2),
        (0.75, 0.2),
        (0.85, 0.85),
        (1.0, 1.0),
    ],
)
def test_what_came_in_upon_waking_may_have_waited(
    wakefulness: Wakefulness, at: float, earliest: float
) -> None:
    assert wakefulness.earliest(at) == earliest


def test_late_looks_are_no_standstill() -> None:
    wakefulness = Wakefulness(0.0)
    for fifth in range(50):
        wakefulness.look(fifth / 5)
        assert wakefulness.earliest(fifth / 5) == fifth / 5


def test_a_look_back_in_time_changes_nothing(wakefulness: Wakefulness) -> None:
    wakefulness.look(0.1)
    wakefulness.look(1.1)
    assert wakefulness.earliest(1.1) == 1.1


def test_only_so_many_are_remembered() -> None:
    wakefulness = Wakefulness(0.0)
    for second in range(1, REMEMBERED + 2):
        wakefulness.look(second)
    assert wakefulness.earliest(1.0) == 1.0
    assert wakefulness.earliest(2.0) == 1.0
