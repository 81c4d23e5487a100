"""`python -m tests.simulation --calls`: many calls by their seeds, and what is reported of them."""

from unittest.mock import patch

import pytest

from tests.simulation.call_plan import CallPlan, Promise, Stall
from tests.simulation.call_report import CallTotals, Outcome, run_seed, text_of
from tests.simulation.calls import CallResult, Cut
from tests.simulation.provider_model import Delays
from tests.simulation.test_fleet import simulate
from worker.core.turn_boundary import Boundary, History

LATE = Delays(late_share=0.03)
PLANS = {
    Promise.EXACT: CallPlan(1, "flux", LATE, Stall.BOTH),
    Promise.RARE: CallPlan(2, "cartesia", LATE),
    Promise.BEYOND: CallPlan(3, "cartesia", stall=Stall.BOTH),
}
RIGHT = CallResult(10.0, 5, 2, (), "")
CUT_WRONG = RIGHT._replace(wrong_cuts=(Cut(900.0, 1_000, 1_500),))
WORD_LOST = CUT_WRONG._replace(wrong_words="lost [1]")


def _totals(promise: Promise, *results: CallResult) -> CallTotals:
    totals = CallTotals()
    for result in results:
        totals.add(Outcome(PLANS[promise], result))
    return totals


@pytest.mark.parametrize(
    ("promise", "results", "failed", "ok"),
    [
        (Promise.EXACT, [RIGHT], 0, True),
        (Promise.EXACT, [RIGHT, CUT_WRONG], 1, False),
        (Promise.EXACT, [WORD_LOST], 1, False),
        (Promise.RARE, [CUT_WRONG] * 9, 0, True),
        (Promise.RARE, [WORD_LOST] * 4, 4, True),
        (Promise.RARE, [WORD_LOST] * 5, 5, False),
        (Promise.RARE, [WORD_LOST] * 5 + [RIGHT] * 2_000, 5, True),
        (Promise.BEYOND, [CUT_WRONG, WORD_LOST, WORD_LOST], 2, True),
    ],
)
def test_report_separates_what_is_promised(
    promise: Promise, results: list[CallResult], failed: int, ok: bool
) -> None:
    totals = _totals(promise, *results)
    assert totals.ok is ok
    assert totals.promises[promise].failed == totals.all.failed == failed
    assert f"{promise}: {len(results)} calls, {failed} failures" in text_of(totals)
    assert (f"seed {PLANS[promise].seed}:" in text_of(totals)) is bool(failed)


def _cut_inside_the_last_word(last_word_ms: float | None, transcribed_ms: float) -> float:
    return (last_word_ms or transcribed_ms) - 50


def _cut_after_all_that_was_sent(history: History, *, begins: bool = False) -> Boundary:
    return Boundary(history.arrival.sent.session_bytes, None, None, lookback_suffices=True)


@pytest.mark.parametrize(
    ("provider", "name", "mutant"),
    [
        ("flux", "worker.session.receiver.turn_cut_ms", _cut_inside_the_last_word),
        ("cartesia", "worker.session.boundary.find_end", _cut_after_all_that_was_sent),
    ],
)
def test_wrong_cuts_are_found_and_repeat_by_their_seed(
    provider: str, name: str, mutant: object
) -> None:
    with patch(name, mutant):
        outcomes = [run_seed(seed, provider) for seed in range(40)]
        failed = [each for each in outcomes if each.failure]
        assert failed
        again = run_seed(failed[0].plan.seed, provider)
        assert again.failure == failed[0].failure
    assert not run_seed(failed[0].plan.seed, provider).failure


def test_calls_are_as_promised_and_equal_in_every_run() -> None:
    first, second = (simulate("--calls", "200", "--json", "--jobs", jobs) for jobs in "12")
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout == second.stdout
    assert '"ok":true' in first.stdout


def test_provider_of_a_fleet_is_an_error() -> None:
    result = simulate("--provider", "flux")
    assert result.returncode == 2
    assert "--calls" in result.stderr


@pytest.mark.slow
def test_thousands_of_calls_are_as_promised() -> None:
    result = simulate("--calls", "5000", "--first", "1000")
    assert result.returncode == 0, result.stdout + result.stderr
