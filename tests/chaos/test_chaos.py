"""Chaos runs: under faults no word is lost, repeated or damaged, and no key is left over."""

from pathlib import Path

import pytest

from tests.chaos.faults import audio_s, schedule
from tests.chaos.plan import ChaosPlan
from tests.chaos.report import text_of
from tests.chaos.run import chaos, longest_up_ms
from tests.chaos.script import scripted_sessions
from worker.bench.terminal import Progress

# Its schedule has many kinds of faults, soon a kill, and an outage inside a long turn: see below.
SHORT = ChaosPlan(seed=812, turns=90, sessions=20, every_s=1.0, max_lag_s=8.0, long_every=20)

# Both providers fail, also together, and sessions move between them inside turns.
FAILOVER = ChaosPlan(
    seed=7,
    turns=60,
    sessions=20,
    every_s=1.5,
    providers="cartesia,flux",
    max_lag_s=0.0,
    long_every=0,
    faults=(
        "kill",
        "stt-cut",
        "stt-stall",
        "stt-refused",
        "stt-half-open",
        "stt-standstill",
        "stt-slow",
        "stt-outage-kill",
        "stt-outage-all",
    ),
)

LONG = (
    *(ChaosPlan(seed=seed, turns=10_000, sessions=80) for seed in (1, 2, 3)),
    ChaosPlan(seed=4, turns=10_000, sessions=80, latency_ms=900.0),
    ChaosPlan(seed=5, turns=10_000, sessions=80, rewording=True),
    ChaosPlan(seed=6, turns=10_000, sessions=80, providers="cartesia,flux"),
    ChaosPlan(seed=7, turns=10_000, sessions=80, providers="flux,cartesia"),
)


def test_short_plan_has_many_faults_and_an_early_kill() -> None:
    scheduled = schedule(SHORT)
    assert len({fault.name for fault in scheduled}) >= 15
    kills = [fault.at_s for fault in scheduled if fault.name == "kill"]
    assert kills[2] < audio_s(SHORT) / 2
    assert "stt-outage-long" in {fault.name for fault in scheduled}


async def test_short_run_has_no_violations(tmp_path: Path) -> None:
    report = await chaos(SHORT, tmp_path, Progress())
    assert report.violations == (), f"{text_of(report)}logs: {tmp_path}"
    assert report.sessions == len(list(scripted_sessions(SHORT)))
    assert report.turns >= 25  # on a slow machine more audio is too late
    assert report.long_turns
    assert report.outages_in_turns
    # An outage may exceed the maximum lag; words must be published nevertheless.
    assert report.announced < report.words, text_of(report)
    # A kill waits for a worker with sessions; there is one while producers send audio.
    assert "kill" in report.faults, text_of(report)


def test_failover_plan_has_faults_of_both_providers() -> None:
    scheduled = schedule(FAILOVER)
    assert {fault.name for fault in scheduled} == {*FAILOVER.faults}
    outages = [fault for fault in scheduled if fault.provider and fault.name != "stt-cut"]
    assert {fault.provider for fault in outages} == {"cartesia", "flux"}


async def test_failover_run_has_no_violations(tmp_path: Path) -> None:
    report = await chaos(FAILOVER, tmp_path, Progress())
    assert report.violations == (), f"{text_of(report)}logs: {tmp_path}"
    assert report.gaps == 0
    assert {move.partition(" ")[0] for move in report.moves} == {"cartesia", "flux"}


@pytest.mark.slow
@pytest.mark.parametrize("plan", LONG, ids=lambda plan: f"seed {plan.seed}")
async def test_long_run_has_no_violations(plan: ChaosPlan, tmp_path: Path) -> None:
    report = await chaos(plan, tmp_path, Progress())
    assert report.violations == (), f"{text_of(report)}logs: {tmp_path}"
    assert len(report.faults) >= len({fault.kind for fault in report.schedule}) - 2


@pytest.mark.parametrize(
    ("outages", "longest"),
    [
        ([], 5_000),
        ([(0, 900)], 5_000),
        ([(5_900, 7_000)], 4_900),
        ([(1_000, 5_800)], 200),
        ([(2_050, 5_900)], 1_050),
        ([(1_500, 2_000), (2_800, 5_700)], 800),
        ([(2_800, 5_700), (1_500, 2_000)], 800),
        ([(500, 7_000)], 0),
    ],
)
def test_longest_up_time_excludes_outages(outages: list[tuple[int, int]], longest: int) -> None:
    assert longest_up_ms(1_000, 6_000, outages) == longest
