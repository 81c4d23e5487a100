"""Plans are data: the same seed draws the same plan, and JSON keeps all of it."""

from collections import Counter

from tests.simulation.fleet.draw import AIMS, draw_plan
from tests.simulation.fleet.plan import (
    FAULTS,
    LOST_IN,
    MAX_FAULTS,
    STATES_AWAITED,
    decode_plan,
    encode_plan,
)
from tests.simulation.fleet.report import STATES
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


def test_seeds_aim_at_each_kind_in_each_rare_state() -> None:
    aimed = {
        (fault.kind, fault.in_state)
        for seed in range(1, 2 * len(AIMS), 2)
        for fault in draw_plan(seed).faults
    }
    assert aimed >= set(AIMS)


def test_awaited_states_are_states_of_a_session() -> None:
    assert set(STATES) == {*STATES_AWAITED, "live", "speaking/speaking"}
    assert {*LOST_IN, *LOST_IN.values()} <= set(STATES)
