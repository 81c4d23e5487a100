"""When a provider fails repeatedly at the same audio."""

import pytest

from worker.core.repeats import MAX_CERTAIN_LOSSES, MAX_LOSSES, MIN_LOSING_S, Repeats

Loss = tuple[int, object, float, bool]
"""Position, progress, time, and whether it is certainly the provider's fault."""


def _verdicts(losses: list[Loss]) -> list[bool]:
    repeats = Repeats(near=10)
    return [
        repeats.lost(place, progress, now, certain=certain)
        for place, progress, now, certain in losses
    ]


@pytest.mark.parametrize(
    ("losses", "last"),
    [
        ([(100, 0, float(n), True) for n in range(MAX_CERTAIN_LOSSES)], True),
        ([(100, 0, float(n), True) for n in range(MAX_CERTAIN_LOSSES - 1)], False),
        ([(100 + n % 2 * 10, 0, float(n), True) for n in range(MAX_CERTAIN_LOSSES)], True),
        ([(100, n, float(n), True) for n in range(20)], False),  # progress
        ([(100 * n, 0, float(n), True) for n in range(20)], False),  # further each time
        ([(100, 0, float(n), False) for n in range(20)], False),  # an outage so far
        ([(100, 0, n * MIN_LOSING_S, False) for n in range(MAX_LOSSES)], True),
        ([(100, 0, n * MIN_LOSING_S, False) for n in range(MAX_LOSSES - 1)], False),
        ([(100 - n % 2 * 50, 0, n * MIN_LOSING_S, False) for n in range(MAX_LOSSES)], False),
        ([(100 - n % 2 * 50, 0, n * MIN_LOSING_S, False) for n in range(2 * MAX_LOSSES - 1)], True),
    ],
)
def test_verdict_on_repeated_failures(losses: list[Loss], *, last: bool) -> None:
    *before, verdict = _verdicts(losses)
    assert (any(before), verdict) == (False, last)
