"""Every kind of fault of a plan can be injected."""

import pytest

from tests.simulation.fleet.faults import BEGIN, OF_A_WORKER
from tests.simulation.fleet.plan import FAULTS, PROVIDER_FAULTS
from worker.local.emulator.faults import parse_fault


def test_each_kind_has_an_action() -> None:
    assert set(BEGIN) == set(FAULTS)
    assert set(BEGIN) > OF_A_WORKER


@pytest.mark.parametrize("spec", PROVIDER_FAULTS)
def test_faults_of_the_provider_are_valid(spec: str) -> None:
    assert parse_fault(spec).count is not None
