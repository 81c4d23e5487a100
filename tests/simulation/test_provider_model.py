"""The links of a simulated provider: messages are late, stand still, and never overtake."""

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.simulation.provider_model import ON_TIME, RECOVERY_S, Delays, Link

seconds = st.floats(0, 3)
times = st.lists(st.floats(0, 60), min_size=1, max_size=30).map(sorted)
delays_drawn = st.builds(
    Delays,
    lag_s=seconds,
    jitter_s=seconds,
    late_share=st.sampled_from((0.0, 0.3, 1.0)),
    late_s=st.floats(0.01, 3),
    max_late_s=seconds,
)


@given(seed=st.integers(), sent=times, delays=delays_drawn, began=seconds, lasts_s=seconds)
def test_messages_keep_their_order_and_wait_for_a_standstill(
    seed: int, sent: list[float], delays: Delays, began: float, lasts_s: float
) -> None:
    link = Link(random.Random(seed), delays, [(began, began + lasts_s)])
    arrived = [link.arrival(at) for at in sent]
    assert all(before <= after for before, after in pairwise(arrived))
    assert not any(began <= at < began + lasts_s for at in arrived)
    longest_s = delays.lag_s + delays.jitter_s + delays.max_late_s + lasts_s + RECOVERY_S
    for index, at in enumerate(arrived):
        assert sent[index] + delays.lag_s <= at <= sent[index] + longest_s + 1e-6


def test_link_without_delays_delivers_at_once() -> None:
    link = Link(random.Random(1), ON_TIME)
    assert [link.arrival(at) for at in (1.0, 2.0, 5.0)] == [1.0, 2.0, 5.0]


def test_given_share_of_single_messages_is_late() -> None:
    link = Link(random.Random(1), Delays(late_share=0.1, late_s=0.2))
    late = [link.arrival(10.0 * count) - 10.0 * count for count in range(1, 2_001)]
    assert 150 < sum(each > 0 for each in late) < 250
    assert max(late) > 0.6
