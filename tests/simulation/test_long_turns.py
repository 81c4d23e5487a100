"""Turns longer than `max_lag_s`: every word is transcribed once, or announced as missing."""

from collections.abc import Iterable

import pytest

from tests.simulation.world import FaultKind, Result, Scenario, simulate

EVERY: tuple[FaultKind, ...] = ("cut", "outage", "kill", "stop", "partition", "redis")


def _simulate_all(scenarios: Iterable[Scenario]) -> tuple[list[str], list[Result]]:
    """Return the violated guarantees, and every result."""
    results = [(scenario, simulate(scenario)) for scenario in scenarios]
    broken = [
        f"{scenario}: {violation}" for scenario, each in results for violation in each.violations
    ]
    return broken, [result for _, result in results]


@pytest.mark.parametrize("limit_s", [4.0, 8.0])
@pytest.mark.parametrize("kind", EVERY)
def test_long_turns_are_not_late(kind: FaultKind, limit_s: float) -> None:
    scenarios = [Scenario(seed, limit_s, (kind, kind)) for seed in range(4)]
    broken, results = _simulate_all(scenarios)
    assert not broken
    assert not any(result.gap_s for result in results)
    assert all(result.turn_s > limit_s for result in results)


@pytest.mark.parametrize("limit_s", [0.0, 1.0, 5.0])
def test_long_turns_survive_troubles_of_all_kinds(limit_s: float) -> None:
    broken, _ = _simulate_all(Scenario(seed, limit_s, EVERY, (0.05, 3.0)) for seed in range(12))
    assert not broken


@pytest.mark.parametrize("kind", ["outage", "kill", "stop"])
def test_gaps_cover_the_missing_audio_exactly(kind: FaultKind) -> None:
    troubles: tuple[FaultKind, ...] = (kind, "cut", kind, "cut")
    scenarios = [Scenario(seed, 3.0, troubles, (4.0, 9.0)) for seed in range(8)]
    broken, results = _simulate_all(scenarios)
    assert not broken
    assert all(result.gap_s for result in results)


def test_gaps_are_exact_after_a_takeover_from_an_earlier_version() -> None:
    troubles: tuple[FaultKind, ...] = ("kill", "outage", "stop", "kill")
    scenarios = [Scenario(seed, 4.0, troubles, (0.1, 6.0), earlier=True) for seed in range(10)]
    violations = [
        violation
        for scenario in scenarios
        for violation in simulate(scenario).violations
        if " s are announced, " not in violation  # how much was sent is known inexactly
    ]
    assert not violations


def test_turn_longer_than_the_default_limit_is_not_late() -> None:
    scenario = Scenario(1, 600.0, ("cut", "kill", "stop"), long_s=(1.15, 1.2))
    broken, (result,) = _simulate_all([scenario])
    assert not broken
    assert not result.gap_s
    assert result.turn_s > 680


@pytest.mark.slow
@pytest.mark.parametrize("limit_s", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("lag_s", [0.0, 0.3, 0.8])
def test_hundreds_of_long_turns_survive_troubles(limit_s: float, lag_s: float) -> None:
    broken, _ = _simulate_all(
        Scenario(seed, limit_s, EVERY * (1 + seed % 3), (0.02, 2.5 * limit_s), lag_s=lag_s)
        for seed in range(150)
    )
    assert not broken
