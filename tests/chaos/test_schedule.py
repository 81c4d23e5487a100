"""The schedule of a chaos run depends only on the plan."""

from itertools import pairwise

import msgspec
import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.plan import Plan
from tests.chaos.schedule import schedule, speech_s
from tests.chaos.script import chunks, scripted_sessions, spans
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words

PLANS = (
    Plan(),
    Plan(seed=7, turns=1_000, sessions=80, connections=8),
    Plan(seed=8, every_s=0.3, faults=("kill", "lost-reply")),
)


@pytest.mark.parametrize("plan", PLANS)
def test_schedule_is_the_same_for_a_plan(plan: Plan) -> None:
    assert schedule(plan) == schedule(plan)


def test_schedule_differs_for_another_seed() -> None:
    drawn = {schedule(Plan(seed=seed)) for seed in range(50)}
    assert len(drawn) == 50


def test_every_fault_has_its_own_seed() -> None:
    strikes = schedule(Plan(turns=10_000, sessions=80))
    assert len({strike.seed for strike in strikes}) == len(strikes)


@pytest.mark.parametrize("plan", PLANS)
def test_faults_are_due_while_sessions_send_audio(plan: Plan) -> None:
    strikes = schedule(plan)
    assert {strike.fault for strike in strikes} <= set(plan.faults or FAULTS)
    assert all(before.at_s <= after.at_s for before, after in pairwise(strikes))
    assert 0 < strikes[0].at_s <= strikes[-1].at_s < speech_s(plan) + 0.01


def test_speech_time_respects_the_session_limit() -> None:
    everybody = [voice.seconds for voice in scripted_sessions(Plan(seed=1, turns=60))]
    alone = Plan(seed=1, turns=60, sessions=1)
    assert speech_s(alone) == pytest.approx(sum(everybody))
    assert speech_s(Plan(seed=1, turns=60, sessions=9, connections=1)) == speech_s(alone)
    together = Plan(seed=1, turns=60, sessions=200)
    assert speech_s(together) == max(0.1 * nth + one for nth, one in enumerate(everybody))


def test_long_turns_exceed_the_maximum_lag() -> None:
    plan = Plan(turns=2_000, max_lag_s=7.0, long_every=10)
    turns = [turn for voice in scripted_sessions(plan) for turn in voice.turns]
    longs = [turn for turn in turns if turn.words > 6]
    assert 100 < len(longs) < 300
    assert all(turn.seconds > plan.max_lag_s and not any(turn.pauses_ms) for turn in longs)
    without = msgspec.structs.replace(plan, long_every=0)
    assert max(turn.words for voice in scripted_sessions(without) for turn in voice.turns) == 6


def test_spans_match_word_positions() -> None:
    for voice in scripted_sessions(Plan(seed=3, turns=40)):
        sound = b"".join(chunk.audio for chunk in chunks(voice))
        bytes_per_ms = len(synthesize_silence(1_000, voice.audio)) / 1_000
        for word, span in enumerate(spans(voice)):
            begin, end = round(span.begin * bytes_per_ms), round(span.end * bytes_per_ms)
            assert sound[begin:end] == synthesize_words([word], voice.audio)


def test_session_length_includes_last_chunk_and_linger() -> None:
    for voice in scripted_sessions(Plan(seed=2, turns=100)):
        *_, last = chunks(voice)
        assert voice.seconds == pytest.approx(last.due_s + voice.linger_s, abs=0.01)
