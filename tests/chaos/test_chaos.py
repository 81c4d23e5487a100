"""The proof: whatever breaks, no word is lost, repeated or damaged, and nothing is left behind."""

from pathlib import Path

import pytest

from tests.chaos.quiet import Quiet
from worker.local.chaos.faults import FAULTS
from worker.local.chaos.plan import Plan
from worker.local.chaos.report import text_of
from worker.local.chaos.run import chaos

SHORT = Plan(seed=3, turns=110, sessions=20, every_s=0.8)

LONG = (
    *(Plan(seed=seed, turns=10_000, sessions=80) for seed in (1, 2, 3)),
    Plan(seed=4, turns=10_000, sessions=80, latency_ms=900.0),
    Plan(seed=5, turns=10_000, sessions=80, rewording=True),
)


async def test_a_short_run_keeps_every_promise(tmp_path: Path) -> None:
    report = await chaos(SHORT, tmp_path, Quiet())
    assert report.violations == (), f"{text_of(report)}logs: {tmp_path}"
    assert report.turns >= 80
    assert report.kills
    assert len(report.faults) >= 10, report.faults


@pytest.mark.slow
@pytest.mark.parametrize("plan", LONG, ids=lambda plan: f"seed {plan.seed}")
async def test_a_long_run_keeps_every_promise(plan: Plan, tmp_path: Path) -> None:
    report = await chaos(plan, tmp_path, Quiet())
    assert report.violations == (), f"{text_of(report)}logs: {tmp_path}"
    assert len(report.faults) >= len(FAULTS) - 2, report.faults
