"""Shrinking keeps what an oracle needs, and removes the rest."""

import pytest
from msgspec.structs import replace

from tests.simulation.fleet.draw import draw_plan
from tests.simulation.fleet.plan import FleetPlan
from tests.simulation.fleet.shrink import shrink

BIG = max((draw_plan(seed) for seed in range(60)), key=lambda plan: len(plan.faults))


def needs_crash(plan: FleetPlan) -> bool:
    return any(fault.kind == "crash" for fault in plan.faults)


def test_plan_without_a_cause_becomes_minimal() -> None:
    plan = shrink(BIG, lambda _: True)
    assert len(plan.sessions) == 1
    assert plan.faults == ()
    assert plan.workers == 1
    assert len(plan.sessions[0].script.turns) == 1
    assert plan.sessions[0].script.words == 1
    assert plan.seed == BIG.seed


def test_needed_parts_stay() -> None:
    fault = replace(BIG.faults[0], kind="crash", after="commit", steps=1_000)
    big = replace(BIG, faults=(*BIG.faults[:9], fault, *BIG.faults[9:]), workers=3)
    last = big.sessions[-1].script.name

    def fails(plan: FleetPlan) -> bool:
        named = any(session.script.name == last for session in plan.sessions)
        steps = any(each.kind == "crash" and each.steps == 1_000 for each in plan.faults)
        return named and steps and plan.workers >= 2

    plan = shrink(big, fails)
    assert [session.script.name for session in plan.sessions] == [last]
    assert [(each.kind, each.after, each.steps) for each in plan.faults] == [
        ("crash", "commit", 1_000)
    ]
    assert plan.workers == 2


def test_result_fails() -> None:
    plan = shrink(
        replace(BIG, faults=(*BIG.faults, *draw_plan(3).faults)), lambda p: len(p.faults) > 2
    )
    assert len(plan.faults) == 3


@pytest.mark.parametrize("runs", [0, 1, 10])
def test_number_of_runs_is_limited(runs: int) -> None:
    tried = list[FleetPlan]()

    def fails(plan: FleetPlan) -> bool:
        tried.append(plan)
        return True

    shrink(BIG, fails, runs)
    assert len(tried) <= runs
