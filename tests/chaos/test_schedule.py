"""The schedule of a chaos run: all of it from the plan."""

from itertools import pairwise

import pytest

from worker.local.chaos.faults import FAULTS
from worker.local.chaos.plan import Plan
from worker.local.chaos.schedule import schedule, speech_s
from worker.local.chaos.voices import chunks, voices

PLANS = (
    Plan(),
    Plan(seed=7, turns=1_000, sessions=80, connections=8),
    Plan(seed=8, every_s=0.3, faults=("kill", "lost-reply")),
)


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_has_one_schedule(plan: Plan) -> None:
    assert schedule(plan) == schedule(plan)


def test_another_seed_has_another_schedule() -> None:
    drawn = {schedule(Plan(seed=seed)) for seed in range(50)}
    assert len(drawn) == 50


def test_every_fault_draws_from_a_seed_of_its_own() -> None:
    strikes = schedule(Plan(turns=10_000, sessions=80))
    assert len({strike.seed for strike in strikes}) == len(strikes)


@pytest.mark.parametrize("plan", PLANS)
def test_faults_are_due_while_somebody_speaks(plan: Plan) -> None:
    strikes = schedule(plan)
    assert {strike.fault for strike in strikes} <= set(plan.faults or FAULTS)
    assert all(before.at_s <= after.at_s for before, after in pairwise(strikes))
    assert 0 < strikes[0].at_s <= strikes[-1].at_s < speech_s(plan) + 0.01


def test_all_is_said_in_turn_by_as_many_as_may_speak() -> None:
    everybody = [voice.seconds for voice in voices(1, 60)]
    alone = Plan(seed=1, turns=60, sessions=1)
    assert speech_s(alone) == pytest.approx(sum(everybody))
    assert speech_s(Plan(seed=1, turns=60, sessions=9, connections=1)) == speech_s(alone)
    together = Plan(seed=1, turns=60, sessions=200)
    assert speech_s(together) == max(0.1 * nth + one for nth, one in enumerate(everybody))


def test_a_voice_lasts_until_its_last_chunk_and_what_it_lingers() -> None:
    for voice in voices(2, 100):
        *_, last = chunks(voice)
        assert voice.seconds == pytest.approx(last.due_s + voice.linger_s, abs=0.01)
