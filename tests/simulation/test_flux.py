"""Sessions at a provider that sends the times of words: no word is lost or repeated, however late.

Messages arrive up to three seconds late. The place of a cut does not depend on their arrival.
"""

from collections.abc import Sequence

import pytest

from tests.simulation.world import FaultKind, Scenario, simulate

EVERY: tuple[FaultKind, ...] = ("cut", "outage", "kill", "stop", "partition", "redis")


def _wrong(scenarios: Sequence[Scenario], *, signals: bool = False) -> list[str]:
    """Return the violated guarantees."""
    return [
        f"{scenario}: {violation}"
        for scenario in scenarios
        for violation in simulate(scenario, signals=signals).violations
    ]


@pytest.mark.parametrize("late_s", [0.0, 3.0])
@pytest.mark.parametrize("cuts", [1, 4])
def test_lost_sockets_lose_no_word(cuts: int, late_s: float) -> None:
    cut: FaultKind = "cut"
    troubles = (cut,) * cuts
    # Sockets that are 2 s late are replaced, and each replay costs time.
    scenarios = [
        Scenario(seed, 60.0, troubles, long_s=(0.1, 0.3), late_s=late_s, providers="flux")
        for seed in range(12)
    ]
    assert not _wrong(scenarios)


@pytest.mark.parametrize("late_s", [0.0, 3.0])
@pytest.mark.parametrize("signals", [False, True], ids=["plain", "signals"])
def test_faults_of_all_kinds_lose_no_word(late_s: float, signals: bool) -> None:
    scenarios = [
        Scenario(seed, 0.0, EVERY, (0.05, 2.0), (0.5, 1.0), late_s=late_s, providers="flux")
        for seed in range(10)
    ]
    assert not _wrong(scenarios, signals=signals)
