"""The schedule of a chaos run depends only on the plan."""

from itertools import pairwise

import msgspec
import pytest

from tests.chaos.faults import FAULTS, ProviderFault, audio_s, schedule
from tests.chaos.plan import ChaosPlan
from tests.chaos.script import chunks, scripted_sessions, spans
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words

PLANS = (
    ChaosPlan(),
    ChaosPlan(seed=7, turns=1_000, sessions=80, connections=8),
    ChaosPlan(seed=8, every_s=0.3, faults=("kill", "lost-reply")),
)


@pytest.mark.parametrize("plan", PLANS)
def test_schedule_is_the_same_for_a_plan(plan: ChaosPlan) -> None:
    assert schedule(plan) == schedule(plan)


def test_schedule_differs_for_another_seed() -> None:
    drawn = {schedule(ChaosPlan(seed=seed)) for seed in range(50)}
    assert len(drawn) == 50


def test_faults_of_providers_hit_each_provider() -> None:
    plan = ChaosPlan(turns=10_000, sessions=80, every_s=0.1, providers="flux,cartesia")
    scheduled = schedule(plan)
    kinds = {fault.kind for fault in scheduled}
    for name, fault in FAULTS.items():
        if isinstance(fault, ProviderFault):
            assert {f"{name} cartesia", f"{name} flux"} <= kinds


def test_failover_faults_need_several_providers() -> None:
    plan = ChaosPlan(turns=10_000, sessions=80, providers="flux")
    scheduled = schedule(plan)
    assert {fault.provider for fault in scheduled} == {"", "flux"}
    assert "stt-cut flux" in {fault.kind for fault in scheduled}
    assert "stt-outage-all" not in {fault.name for fault in scheduled}


def test_every_fault_has_its_own_seed() -> None:
    scheduled = schedule(ChaosPlan(turns=10_000, sessions=80))
    assert len({fault.seed for fault in scheduled}) == len(scheduled)


@pytest.mark.parametrize("plan", PLANS)
def test_faults_are_due_while_sessions_send_audio(plan: ChaosPlan) -> None:
    scheduled = schedule(plan)
    assert {fault.name for fault in scheduled} <= set(plan.faults or FAULTS)
    assert all(before.at_s <= after.at_s for before, after in pairwise(scheduled))
    assert 0 < scheduled[0].at_s <= scheduled[-1].at_s < audio_s(plan) + 0.01


def test_speech_time_respects_the_session_limit() -> None:
    lengths = [script.seconds for script in scripted_sessions(ChaosPlan(seed=1, turns=60))]
    one_at_a_time = ChaosPlan(seed=1, turns=60, sessions=1)
    assert audio_s(one_at_a_time) == pytest.approx(sum(lengths))
    assert audio_s(ChaosPlan(seed=1, turns=60, sessions=9, connections=1)) == audio_s(one_at_a_time)
    all_at_once = ChaosPlan(seed=1, turns=60, sessions=200)
    assert audio_s(all_at_once) == max(0.1 * nth + one for nth, one in enumerate(lengths))


def test_long_turns_exceed_the_maximum_lag() -> None:
    plan = ChaosPlan(turns=2_000, max_lag_s=7.0, long_every=10)
    turns = [turn for script in scripted_sessions(plan) for turn in script.turns]
    longs = [turn for turn in turns if turn.words > 6]
    assert 100 < len(longs) < 300
    assert all(turn.seconds > plan.max_lag_s and not any(turn.pauses_ms) for turn in longs)
    without = msgspec.structs.replace(plan, long_every=0)
    assert max(turn.words for script in scripted_sessions(without) for turn in script.turns) == 6


def test_spans_match_word_positions() -> None:
    for script in scripted_sessions(ChaosPlan(seed=3, turns=40)):
        sound = b"".join(chunk.audio for chunk in chunks(script))
        bytes_per_ms = len(synthesize_silence(1_000, script.audio)) / 1_000
        for word, span in enumerate(spans(script)):
            begin, end = round(span.begin * bytes_per_ms), round(span.end * bytes_per_ms)
            assert sound[begin:end] == synthesize_words([word], script.audio)


def test_session_length_includes_last_chunk_and_linger() -> None:
    for script in scripted_sessions(ChaosPlan(seed=2, turns=100)):
        *_, last = chunks(script)
        assert script.seconds == pytest.approx(last.due_s + script.linger_s, abs=0.01)
