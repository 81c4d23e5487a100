"""The phases of a session: the table pair by pair."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.phases import TABLE, Action, Input, Lifecycle, Phase

GRID = """
input         parked             connecting    live                 flushing             over
ENTRIES       HOLD               HOLD          SEND                 SKIP                 SKIP
TICK          CHECK_IDLE         CHECK_OUTAGE  CHECK_SOCKET         CHECK_SOCKET         NOTHING
WORK          CONNECT>connecting -             -                    -                    -
END           END>over           -             -                    -                    -
IDLE          END>over           -             -                    -                    -
CONNECTED     -                  ATTACH>live   -                    -                    -
LAST_SENT     -                  -             FLUSH>flushing       -                    -
FLUSHED       -                  -             -                    PARK>parked          -
FLUSHED_END   -                  -             -                    END>over             -
FLUSHED_EARLY -                  -             -                    WAIT>parked        -
LOST          -                  -             RECONNECT>connecting RECONNECT>connecting -
CLOSED_IDLE   -                  -             PARK>parked          PARK>parked          -
RETRY         -                  WAIT>parked -                    -                    -
FATAL         FAIL>over          FAIL>over     FAIL>over            FAIL>over            -
STOP          NOTHING>over       NOTHING>over  NOTHING>over         NOTHING>over         NOTHING
"""


def _cells() -> dict[tuple[Phase, Input], tuple[Action, Phase] | None]:
    head, *rows = [line.split() for line in GRID.strip().splitlines()]
    cells: dict[tuple[Phase, Input], tuple[Action, Phase] | None] = {}
    for name, *row in rows:
        for phase, cell in zip(map(Phase, head[1:]), row, strict=True):
            action, _, after = cell.partition(">")
            done = None if action == "-" else (Action[action], Phase(after or phase))
            cells[phase, Input[name]] = done
    return cells


CELLS = _cells()


def test_table_has_every_possible_pair() -> None:
    assert set(CELLS) == set(product(Phase, Input))
    assert {pair: cell for pair, cell in CELLS.items() if cell} == dict(TABLE)


@pytest.mark.parametrize(("phase", "event"), CELLS, ids=lambda each: each.name)
def test_input_leads_to_its_action_and_phase(phase: Phase, event: Input) -> None:
    lifecycle = Lifecycle()
    lifecycle.phase = phase
    cell = CELLS[phase, event]
    if cell is None:
        with pytest.raises(RuntimeError, match=f"{event.name} cannot occur in the phase"):
            lifecycle.process(event)
        assert lifecycle.phase is phase
    else:
        assert (lifecycle.process(event), lifecycle.phase) == cell
    assert lifecycle.flushing is (lifecycle.phase is Phase.FLUSHING)


@given(st.lists(st.sampled_from(Input)))
def test_session_ends_once_and_for_good(events: list[Input]) -> None:
    lifecycle, ends = Lifecycle(), 0
    for event in events:
        if (lifecycle.phase, event) in TABLE:
            ends += lifecycle.process(event) in (Action.END, Action.FAIL)
    assert ends <= 1
    assert not ends or lifecycle.phase is Phase.OVER


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_is_reachable(phase: Phase) -> None:
    reached, before = {Phase.PARKED}, set[Phase]()
    while reached != before:
        before = set(reached)
        reached |= {after for (at, _), (_, after) in TABLE.items() if at in before}
    assert phase in reached
