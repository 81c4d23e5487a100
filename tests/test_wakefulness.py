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
    ("since", "until", "awake_s"),
    [
        (0.0, 0.2, 0.2),
        (0.0, 1.0, 0.5),
        (0.1, 0.7, 0.1),
        (0.3, 0.5, 0.0),
        (0.5, 0.9, 0.2),
        (0.7, 1.0, 0.3),
        (0.4, 0.4, 0.0),
    ],
)
def test_a_standstill_does_not_count(
    wakefulness: Wakefulness, since: float, until: float, awake_s: float
) -> None:
    assert wakefulness.awake_s(since, until) == pytest.approx(awake_s)


def test_late_looks_are_no_standstill() -> None:
    wakefulness = Wakefulness(0.0)
    for fifth in range(50):
        wakefulness.look(fifth / 5)
    assert wakefulness.awake_s(0, 10) == 10


def test_a_look_back_in_time_changes_nothing(wakefulness: Wakefulness) -> None:
    wakefulness.look(0.1)
    wakefulness.look(1.1)
    assert wakefulness.awake_s(0, 1.1) == pytest.approx(0.6)


def test_only_so_many_are_remembered() -> None:
    wakefulness = Wakefulness(0.0)
    for second in range(1, 101):
        wakefulness.look(second)
    assert wakefulness.awake_s(0, 100) == 100 - REMEMBERED
