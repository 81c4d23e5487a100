"""Sessions with two providers: no word is lost or repeated, whenever and wherever one fails.

Single messages of Flux arrive late. Sessions return to their first provider after 3 s instead of
30 s, so that they do so in the middle of other faults.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from unittest.mock import patch

import pytest

from tests.simulation.world import FaultKind, Result, Scenario, simulate

BOTH_ORDERS = ("cartesia,flux", "flux,cartesia")
PROVIDER_FAULTS: tuple[FaultKind, ...] = ("outage", "silent", "stuck", "cut")
EVERY: tuple[FaultKind, ...] = (*PROVIDER_FAULTS, "both", "kill", "stop", "partition", "redis")


def _scenario(
    seed: int, providers: str, troubles: Sequence[FaultKind], *, mixed: bool = False
) -> Scenario:
    """Return a session of about 40 s, whose providers fail for up to 8 s at a time."""
    return Scenario(
        seed,
        60.0,
        tuple(troubles),
        (0.05, 8.0),
        (0.1, 0.3),
        late_s=1.0,
        providers=providers,
        mixed=mixed,
        short_turns=3,
    )


def _simulate_all(
    scenarios: Iterable[Scenario], *, signals: bool = False
) -> tuple[list[str], list[Result]]:
    """Return the violated guarantees, and every result."""
    with (
        patch("worker.core.failover.MIN_STAY_S", 3.0),
        patch("worker.session.providers.MIN_STAY_S", 3.0),
    ):
        results = [(scenario, simulate(scenario, signals=signals)) for scenario in scenarios]
    broken = [
        f"{scenario}: {violation}" for scenario, each in results for violation in each.violations
    ]
    return broken, [result for _, result in results]


def _moves(results: Iterable[Result]) -> Counter[str]:
    return Counter(move for result in results for move in result.moves)


@pytest.mark.parametrize("providers", BOTH_ORDERS)
@pytest.mark.parametrize("kind", PROVIDER_FAULTS)
def test_failing_provider_loses_no_word(kind: FaultKind, providers: str) -> None:
    scenarios = [_scenario(seed, providers, (kind,) * 3) for seed in range(8)]
    broken, results = _simulate_all(scenarios)
    assert not broken
    if kind != "cut":  # a single lost socket is no reason to move
        assert _moves(results)["away inside"]


@pytest.mark.parametrize("providers", BOTH_ORDERS)
def test_faults_of_all_kinds_lose_no_word(providers: str) -> None:
    scenarios = [_scenario(seed, providers, EVERY) for seed in range(20)]
    broken, results = _simulate_all(scenarios)
    assert not broken
    moves = _moves(results)
    assert moves["away inside"]
    assert moves["back inside"] + moves["back between"]


@pytest.mark.parametrize("late_s", [0.0, 1.0])
def test_slow_provider_without_times_loses_no_word(late_s: float) -> None:
    """Positions at Cartesia are late by its lag; those at Flux are exact."""
    scenarios = [
        _scenario(seed, BOTH_ORDERS[seed % 2], ("outage",) * 4)._replace(lag_s=0.8, late_s=late_s)
        for seed in range(20)
    ]
    broken, results = _simulate_all(scenarios)
    assert not broken
    assert _moves(results)["away inside"] > 10


def test_marks_and_forced_ends_keep_their_places() -> None:
    scenarios = [_scenario(seed, BOTH_ORDERS[seed % 2], EVERY) for seed in range(10)]
    broken, _ = _simulate_all(scenarios, signals=True)
    assert not broken


def test_workers_with_different_providers_lose_no_word() -> None:
    troubles: tuple[FaultKind, ...] = (*PROVIDER_FAULTS, "kill", "kill", "stop", "kill", "stop")
    scenarios = [_scenario(seed, BOTH_ORDERS[seed % 2], troubles, mixed=True) for seed in range(10)]
    broken, _ = _simulate_all(scenarios)
    assert not broken


@pytest.mark.slow
@pytest.mark.parametrize("signals", [False, True], ids=["plain", "signals"])
@pytest.mark.parametrize("mixed", [False, True], ids=["alike", "mixed"])
@pytest.mark.parametrize("providers", BOTH_ORDERS)
def test_hundreds_of_sessions_lose_no_word(providers: str, mixed: bool, signals: bool) -> None:
    scenarios = [
        _scenario(seed, providers, EVERY * (1 + seed % 3), mixed=mixed) for seed in range(200)
    ]
    broken, _ = _simulate_all(scenarios, signals=signals)
    assert not broken
