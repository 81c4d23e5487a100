"""The proof: whatever breaks, no word is lost, repeated or damaged, and nothing is left behind."""

from pathlib import Path

import pytest

from tests.chaos.plan import Plan
from tests.chaos.quiet import Quiet
from tests.chaos.report import text_of
from tests.chaos.run import chaos
from tests.chaos.schedule import schedule, speech_s
from tests.chaos.script import scripted_sessions

# Its schedule has many kinds of faults, soon a kill, and an outage inside a long turn: see below.
SHORT = Plan(seed=812, turns=90, sessions=20, every_s=1.0, max_lag_s=8.0, long_every=20)

LONG = (
    *(Plan(seed=seed, turns=10_000, sessions=80) for seed in (1, 2, 3)),
    Plan(seed=4, turns=10_000, sessions=80, latency_ms=900.0),
    Plan(seed=5, turns=10_000, sessions=80, rewording=True),
)


def test_the_short_run_is_to_break_much_and_to_kill_soon() -> None:
    strikes = schedule(SHORT)
    assert len({strike.fault for strike in strikes}) >= 15
    kills = [strike.at_s for strike in strikes if strike.fault == "kill"]
    assert kills[2] < speech_s(SHORT) / 2
    assert "stt-outage-long" in {strike.fault for strike in strikes}


async def test_a_short_run_keeps_every_promise(tmp_path: Path) -> None:
    report = await chaos(SHORT, tmp_path, Quiet())
    assert report.violations == (), f"{text_of(report)}logs: {tmp_path}"
    assert report.sessions == len(list(scripted_sessions(SHORT)))
    assert report.turns >= 25  # the slower the machine, the more audio is too late
    assert report.long_turns
    assert report.outages_in_turns
    # An outage may be longer than audio may be late; words come through nevertheless.
    assert report.announced < report.words, text_of(report)
    # A kill waits for a worker that runs sessions, and there is one while somebody speaks.
    assert "kill" in report.faults, text_of(report)


@pytest.mark.slow
@pytest.mark.parametrize("plan", LONG, ids=lambda plan: f"seed {plan.seed}")
async def test_a_long_run_keeps_every_promise(plan: Plan, tmp_path: Path) -> None:
    report = await chaos(plan, tmp_path, Quiet())
    assert report.violations == (), f"{text_of(report)}logs: {tmp_path}"
    assert len(report.faults) >= len({strike.fault for strike in report.schedule}) - 2
