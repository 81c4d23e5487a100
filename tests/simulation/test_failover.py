"""Sessions that move between a provider with times and one without: each word is transcribed once.

The providers word the turns differently, and one of them divides them at shorter pauses. One after
another fails at random moments, inside and between turns, and sessions return between turns.
"""

from collections import Counter
from collections.abc import Iterable

import pytest

from tests.simulation.world import FaultKind, Scenario, simulate

FAILING: tuple[FaultKind, ...] = ("failing",) * 4
EVERY: tuple[FaultKind, ...] = ("failing", "cut", "kill", "failing", "stop", "redis", "failing")
ORDERS = ("cartesia,flux", "flux,cartesia")


def _run(scenarios: Iterable[Scenario], *, signals: bool = False) -> tuple[list[str], Counter[str]]:
    """Return the scenarios that violate a guarantee, and how often sessions moved where."""
    wrong, moves = [], Counter[str]()
    for scenario in scenarios:
        result = simulate(scenario, signals=signals)
        moves.update(result.moves)
        if result.violations:
            wrong.append(f"{scenario}: {result.violations}")
    return wrong, moves


def _scenarios(
    seeds: int, faults: tuple[FaultKind, ...], lag_s: float, late_s: float
) -> list[Scenario]:
    return [
        Scenario(seed, 60.0, faults, (0.05, 3.0), (0.1, 0.3), lag_s, late_s, order)
        for seed in range(seeds)
        for order in ORDERS
    ]


@pytest.mark.parametrize("late_s", [0.0, 1.0])
@pytest.mark.parametrize("lag_s", [0.15, 0.8])
def test_failovers_in_both_directions_lose_no_word(lag_s: float, late_s: float) -> None:
    seeds = 10
    wrong, moves = _run(_scenarios(seeds, FAILING, lag_s, late_s))
    assert not wrong
    assert min(moves["cartesia>flux"], moves["flux>cartesia"]) > 2 * seeds


@pytest.mark.parametrize("signals", [False, True], ids=["plain", "signals"])
def test_failovers_and_other_faults_lose_no_word(signals: bool) -> None:
    wrong, moves = _run(_scenarios(6, EVERY, 0.15, 0.0), signals=signals)
    assert not wrong
    assert min(moves["cartesia>flux"], moves["flux>cartesia"]) > 6


@pytest.mark.slow
@pytest.mark.parametrize("lag_s", [0.15, 0.8])
def test_hundreds_of_failovers_lose_hardly_any_word(lag_s: float) -> None:
    """Messages come up to 3 s late: beyond what is promised for a provider without times."""
    wrong, _ = _run(_scenarios(150, FAILING, lag_s, 3.0))
    assert len(wrong) <= 6, wrong
