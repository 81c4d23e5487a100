"""The committed state diagram of the turn tracker matches the code."""

from itertools import product

from tests.docs.pages import block
from tests.unit.core.picture import BLOCK, PAGE, Place, arrows, markdown
from worker.core.turn_tracker import TABLE, ProviderState, PublishedState


def test_committed_diagram_matches_code() -> None:
    assert block(PAGE, BLOCK) == markdown(), "run `python -m tests.unit.core.picture`"


def test_every_state_of_table_is_visited() -> None:
    visited = {arrow.start for arrow in arrows()}
    assert {Place(shown, provider) for shown, provider, _ in TABLE} == visited
    assert visited < {Place(*pair) for pair in product(PublishedState, ProviderState)}
