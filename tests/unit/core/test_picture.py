"""The committed picture of the turn tracker is that of the code."""

from itertools import product

from tests.docs.pages import block
from tests.unit.core.picture import BLOCK, PAGE, Place, arrows, markdown
from worker.core.turn_tracker import TABLE, ProviderState, PublishedState


def test_committed_is_drawn_from_the_code() -> None:
    assert block(PAGE, BLOCK) == markdown(), "run `python -m tests.unit.core.picture`"


def test_every_place_of_the_table_is_visited() -> None:
    visited = {arrow.start for arrow in arrows()}
    assert {Place(shown, heard) for shown, heard, _ in TABLE} == visited
    assert visited < {Place(*pair) for pair in product(PublishedState, ProviderState)}
