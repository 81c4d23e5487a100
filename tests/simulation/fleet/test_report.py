"""The report adds up runs, names what no fault met, and lists each failure with its seed."""

from msgspec.structs import replace

from tests.simulation.fleet.draw import draw_plan
from tests.simulation.fleet.history import Finding
from tests.simulation.fleet.plan import FAULTS
from tests.simulation.fleet.report import (
    EACH_STATE_SEEDS,
    PHASES,
    STATES,
    TRACKER,
    Outcome,
    Totals,
    text_of,
)

OUTCOME = Outcome(
    plan=draw_plan(5),
    findings=(),
    digest="",
    seconds=20.0,
    faults={"crash": 2},
    states={"crash": {"live": 1, "speaking/eager": 3}},
    events=10,
    commits=5,
    claims=2,
    sockets=3,
)


def test_states_are_those_of_both_tables() -> None:
    assert PHASES == ("parked", "connecting", "live", "flushing")
    assert set(TRACKER) == {
        *("none/none", "speaking/none", "speaking/speaking", "speaking/eager"),
        *("eager/none", "eager/speaking", "eager/eager"),
    }


def test_totals_are_sums() -> None:
    totals = Totals()
    totals.add(OUTCOME)
    totals.add(replace(OUTCOME, faults={"crash": 1, "stop": 1}, states={"stop": {"live": 4}}))
    assert totals.runs == 2
    assert totals.faults == {"crash": 3, "stop": 1}
    assert totals.states["crash", "speaking/eager"] == 3
    missing = totals.never_reached()
    assert ("crash", "live") not in missing
    assert ("crash", "parked") in missing
    assert len(missing) == len(FAULTS) * len(STATES) - 3


def test_text_names_failures_by_seed() -> None:
    totals = Totals()
    totals.add(OUTCOME)
    assert "failures: none" in text_of(totals)
    totals.add(replace(OUTCOME, findings=(Finding("lost", "call-1", "word 3"),)))
    text = text_of(totals)
    assert "seed 5:" in text
    assert "lost: call-1 word 3" in text
    assert "seeds: 2" in text


def test_text_lists_missed_states_of_many_seeds() -> None:
    totals = Totals()
    totals.add(OUTCOME)
    assert "never reached" not in text_of(totals)
    totals.runs = EACH_STATE_SEEDS
    assert "never reached by stop: parked" in text_of(totals)
