"""Plans are data: the same seed draws the same plan, and JSON keeps all of it."""

from collections import Counter

from tests.simulation.fleet.plan import FAULTS, MAX_FAULTS, decode_plan, draw_plan, encode_plan
from tests.simulation.fleet.shards import with_shards

PLANS = [draw_plan(seed) for seed in range(400)]


def test_seed_draws_the_same_plan() -> None:
    assert [draw_plan(seed) for seed in range(20)] == PLANS[:20]
    assert len({encode_plan(plan) for plan in PLANS}) == len(PLANS)


def test_json_keeps_a_plan() -> None:
    assert all(decode_plan(encode_plan(plan)) == plan for plan in PLANS)


def test_all_kinds_and_both_densities_are_drawn() -> None:
    kinds = Counter(fault.kind for plan in map(with_shards, PLANS) for fault in plan.faults)
    assert set(kinds) == set(FAULTS)
    counts = [len(plan.faults) for plan in PLANS]
    assert sum(count <= 2 for count in counts) > 20
    assert sum(count >= MAX_FAULTS // 2 for count in counts) > 20
    assert {len(plan.sessions) for plan in PLANS} >= {1, 20}
    assert {plan.workers for plan in PLANS} == {1, 2, 3}
