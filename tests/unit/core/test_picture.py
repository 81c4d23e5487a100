"""The committed state diagrams match the code."""

from collections.abc import Callable
from itertools import product

import pytest

from tests.docs.pages import block
from tests.unit.core.picture import (
    BLOCK,
    PAGE,
    PHASES_BLOCK,
    Place,
    arrows,
    markdown,
    phases_markdown,
)
from worker.core.turn_tracker import TABLE, ProviderState, PublishedState


@pytest.mark.parametrize(
    ("name", "drawn"),
    [(BLOCK, markdown), (PHASES_BLOCK, phases_markdown)],
    ids=["tracker", "phases"],
)
def test_committed_diagram_matches_code(name: str, drawn: Callable[[], str]) -> None:
    assert block(PAGE, name) == drawn(), "run `python -m tests.unit.core.picture`"


def test_every_state_of_table_is_visited() -> None:
    visited = {arrow.start for arrow in arrows()}
    assert {Place(shown, provider) for shown, provider, _ in TABLE} == visited
    assert visited < {Place(*pair) for pair in product(PublishedState, ProviderState)}
