"""A pause inside a word counts as the producer's only while Redis was up."""

import pytest

from tests.chaos.run import longest_up_ms


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
