"""The best possible observer, and how seldom it and the worker cut turns at the wrong pause."""

from math import sqrt

import pytest

from tests.simulation.best_observer import BestObserver, Delays, Manner, Seen, Sent, Word
from tests.simulation.undecided_calls import simulate

DELAYS = Delays(lag_s=0.2, jitter_s=0.1, late_share=0.05, late_s=0.3)
MANNER = Manner(proposes=0.5, ends=0.5, proposal_ms=[200], end_ms=[200], shown=1.0)
SENT = [Sent(ms / 1_000, ms) for ms in range(20, 6_001, 20)]


@pytest.mark.parametrize("bound_s", [0.1, 0.25, 0.5, 1.0, 3.0])
def test_shares_of_delays_are_sums_of_their_density(bound_s: float) -> None:
    steps = 20_000
    step_s = bound_s / steps
    total = sum(DELAYS.density((at + 0.5) * step_s) for at in range(steps)) * step_s
    assert total == pytest.approx(DELAYS.share_until(bound_s), abs=1e-3)


def test_turn_with_messages_on_time_ended_at_its_last_pause() -> None:
    observer = BestObserver([Word(400, 600), Word(1_100, 1_300)], SENT, DELAYS, MANNER)
    messages = [
        Seen(0.69, "turn.start"),
        Seen(0.85, "turn.update"),
        Seen(1.05, "turn.eager_end", changed=False),
        Seen(1.39, "turn.resume"),
        Seen(1.55, "turn.update"),
        Seen(1.75, "turn.eager_end", changed=False),
        Seen(1.95, "turn.end", changed=False),
    ]
    probabilities = observer.probabilities(messages, 6)
    assert probabilities[1] > 0.9999


def test_end_that_fits_two_pauses_leaves_doubt() -> None:
    """All messages of the turn arrive together: the first is late.

    The only word that a message has shown may be either of two. A turn that ended in the second
    pause hides the other one. The longer delay is the less probable one.
    """
    words = [Word(400, 600), Word(1_100, 1_300)]
    manner = MANNER._replace(shown=0.5)
    observer = BestObserver(words, SENT, DELAYS, manner)
    kinds = ["turn.start", "turn.update", "turn.eager_end", "turn.end"]
    messages = [
        Seen(2.0 + at * 0.00005, kind, kind == "turn.update") for at, kind in enumerate(kinds)
    ]
    probabilities = observer.probabilities(messages, 3)
    assert probabilities.keys() == {0, 1}
    assert all(probability > 0.01 for probability in probabilities.values())
    assert sum(probabilities.values()) == pytest.approx(1)


def test_observer_is_wrong_as_often_as_it_expects() -> None:
    """With many late messages, it is wrong often enough to count. The worker is wrong more often.

    Only the first turn of each call counts: a late message can move several ends at once.
    """
    endings = [ending for seed in range(120) for ending in simulate(seed, 0.5, 1.0)[:1]]
    expected = sum(ending.doubt for ending in endings)
    deviation = sqrt(sum(ending.doubt * (1 - ending.doubt) for ending in endings))
    wrong = sum(ending.observer_is_wrong for ending in endings)
    assert expected > 2
    assert abs(wrong - expected) <= 4 * deviation
    assert wrong <= sum(ending.worker_is_wrong for ending in endings)


def _rates(calls: int) -> tuple[int, int, float]:
    """Return the number of turns, the worker's wrong cuts, and those of the best observer."""
    endings = [ending for seed in range(calls) for ending in simulate(seed)]
    wrong = sum(ending.worker_is_wrong for ending in endings)
    return len(endings), wrong, sum(ending.doubt for ending in endings)


def test_worker_knows_where_turns_end() -> None:
    """One message in twenty is late, by 0.3 s on average."""
    turns, wrong, least = _rates(120)
    assert turns > 150
    assert wrong == 0
    assert least < 1


@pytest.mark.slow
def test_worker_hardly_ever_cuts_at_another_pause() -> None:
    turns, wrong, least = _rates(5_000)
    assert wrong <= turns / 2_000
    assert least <= wrong + 3
