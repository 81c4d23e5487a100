"""Random turns on a socket whose lag is unknown: how many are cut at another pause.

The provider ends turns by meaning, so it lets pauses pass that are longer than the last one.
"""

import random
from itertools import pairwise
from typing import NamedTuple

import pytest

from tests.unit.core.exchange import EAGER_END, END, RESUME, START, UPDATE, Exchange
from worker.core.turn_boundary import find_end

TURNS = 200


class Provider(NamedTuple):
    """How a provider behaves, in seconds."""

    late_share: float = 0.0
    """Share of messages that are late."""
    late_start: bool = False
    eager_s: float | None = None
    """Silence before an eager end; None without."""
    measured_too_high_s: float | None = None
    """By how much the lag of the turn before was measured too high; None without such a turn."""


def _draw(rng: random.Random, provider: Provider) -> tuple[Exchange, tuple[float, float]]:
    """Draw a turn; return it with the earliest and the latest right cut."""
    lag_s, sounds, at = rng.uniform(0.1, 0.5), [], 600
    for _ in range(rng.choice((2, 2, 3))):
        sounds.append((at, at + rng.randrange(200, 700, 10)))
        at = sounds[-1][1] + rng.randrange(200, 900, 10)
    decides_s, detects_s, last = rng.uniform(0.22, 0.7), 0.04, sounds[-1][1]
    messages = [(START, sounds[0][0] / 1e3 + detects_s)]
    for begin, end in sounds:
        messages += [(UPDATE, word / 1e3) for word in range(begin + 250, end + 100, 250)]
    for (_, begin), (end, _) in pairwise(sounds):
        if provider.eager_s and begin / 1e3 + provider.eager_s < end / 1e3:
            messages.append((EAGER_END, begin / 1e3 + provider.eager_s))
            messages.append((RESUME, end / 1e3 + detects_s))
    if provider.eager_s and decides_s > provider.eager_s:
        messages.append((EAGER_END, last / 1e3 + provider.eager_s))
    messages.append((END, last / 1e3 + decides_s))
    arrived, latest_at = [], 0.0
    for kind, sent_at in sorted(messages, key=lambda message: message[1]):
        late = provider.late_start if kind is START else rng.random() < provider.late_share
        latest_at = max(latest_at, sent_at + lag_s + late * rng.expovariate(1 / 0.3))
        arrived.append((kind, latest_at))
    following = int(1e3 * max(decides_s + last / 1e3, latest_at)) + rng.randrange(100, 1_500, 10)
    high_s = provider.measured_too_high_s
    previous_lag_s = None if high_s is None else lag_s + detects_s + high_s
    sounds.append((following, following + 400))
    return Exchange(sounds, arrived, previous_lag_s=previous_lag_s), (last, following)


@pytest.mark.parametrize(
    ("provider", "most"),
    [
        (Provider(), 0),
        (Provider(eager_s=0.25), 0),
        (Provider(late_share=0.05), 0),
        (Provider(late_share=0.05, eager_s=0.25), 0),
        (Provider(late_start=True), 15),
        (Provider(late_start=True, eager_s=0.25), 2),
        (Provider(measured_too_high_s=0.0), 0),
        (Provider(measured_too_high_s=0.3), 0),
        (Provider(measured_too_high_s=0.3, eager_s=0.25), 0),
    ],
)
def test_few_first_turns_are_cut_at_another_pause(provider: Provider, most: int) -> None:
    rng, wrong = random.Random(f"{provider}"), 0
    for _ in range(TURNS):
        exchange, (earliest, latest) = _draw(rng, provider)
        wrong += not earliest <= find_end(exchange.last).position <= latest
    assert wrong <= most
