"""Marks are published once and in order; forced ends end the turn there, whatever fails."""

import pytest

from tests.simulation.test_long_turns import EVERY
from tests.simulation.world import FaultKind, Scenario, simulate


def _violations(
    seeds: int, max_lag_s: float, troubles: tuple[FaultKind, ...], lag_s: float = 0.15
) -> list[str]:
    scenarios = [
        Scenario(seed, max_lag_s, troubles, (0.02, 2.0), (0.5, 1.5), lag_s) for seed in range(seeds)
    ]
    return [
        f"{scenario}: {violation}"
        for scenario in scenarios
        for violation in simulate(scenario, signals=True).violations
    ]


def test_signals_without_faults_are_exact() -> None:
    assert not _violations(6, 10.0, ())


@pytest.mark.parametrize("kind", EVERY)
def test_signals_survive_faults_of_each_kind(kind: FaultKind) -> None:
    assert not _violations(6, 10.0, (kind,) * 4)


@pytest.mark.parametrize("lag_s", [0.0, 0.3])
def test_signals_survive_faults_of_all_kinds(lag_s: float) -> None:
    assert not _violations(8, 10.0, EVERY * 2, lag_s)


def test_signals_survive_late_audio() -> None:
    assert not _violations(8, 1.0, EVERY)


@pytest.mark.slow
@pytest.mark.parametrize("max_lag_s", [1.0, 3.0, 20.0])
def test_hundreds_of_sessions_keep_their_signals(max_lag_s: float) -> None:
    assert not _violations(150, max_lag_s, EVERY * 2)
