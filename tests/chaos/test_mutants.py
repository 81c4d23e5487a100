"""The checker finds what is broken: workers with one guard removed do not pass."""

from pathlib import Path

import pytest

from tests.chaos.quiet import Quiet
from worker.local.chaos.checker import Rule
from worker.local.chaos.plan import Plan
from worker.local.chaos.report import text_of
from worker.local.chaos.run import chaos

CUTS = Plan(seed=106, turns=16, sessions=8, workers=2, every_s=0.6, faults=("stt-cut",))
# One pause, once everybody speaks; when it is over, all are still speaking.
TAKEN_OVER = Plan(seed=2891, turns=24, sessions=8, workers=2, every_s=4.0, faults=("wake-alone",))


@pytest.mark.parametrize(
    ("mutant", "plan", "rules"),
    [
        # Its last snapshot, of before the pause, brings back turns that others ended since.
        pytest.param("no_fence", TAKEN_OVER, {"turn", "end"}, id="no_fence"),
        pytest.param("no_replay", CUTS, {"lost"}, id="no_replay"),
        pytest.param("eager_commit", CUTS, {"lost"}, id="eager_commit"),
    ],
)
async def test_a_worker_without_a_guard_is_found_out(
    mutant: str, plan: Plan, rules: set[Rule], tmp_path: Path
) -> None:
    report = await chaos(plan, tmp_path, Quiet(), module=f"tests.chaos.mutants.{mutant}")
    assert rules <= {violation.rule for violation in report.violations}, text_of(report)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [CUTS, TAKEN_OVER], ids=["cuts", "taken_over"])
async def test_a_whole_worker_withstands_the_same(plan: Plan, tmp_path: Path) -> None:
    report = await chaos(plan, tmp_path, Quiet())
    assert report.faults
    assert report.violations == (), f"{text_of(report)}logs: {tmp_path}"
