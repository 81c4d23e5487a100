"""The committed picture of the turn tracker is that of the code."""

from itertools import product

from tests.core.picture import BLOCK, PAGE, Place, arrows, markdown
from tests.docs.pages import block
from worker.core.turns import TABLE, Heard, Shown


def test_committed_is_drawn_from_the_code() -> None:
    assert block(PAGE, BLOCK) == markdown(), "run `python -m tests.core.picture`"


def test_every_place_of_the_table_is_visited() -> None:
    visited = {arrow.start for arrow in arrows()}
    assert {Place(shown, heard) for shown, heard, _ in TABLE} == visited
    assert visited < {Place(*pair) for pair in product(Shown, Heard)}
