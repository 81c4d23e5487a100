"""All messages of a turn show where it ended: single turns, and random ones with an unknown lag.

The random provider ends turns by meaning, so it lets pauses pass that are longer than the last one.
"""

import random
from itertools import pairwise
from typing import NamedTuple

import pytest

from tests.unit.core.exchange import EAGER_END, END, RESUME, START, UPDATE, Exchange
from worker.core.turn_boundary import CERTAIN_BURST, Burst, find_end

CERTAINLY_DELAYED = Burst(0.0, CERTAIN_BURST, 0)

EXCHANGES = {
    "a slow socket: all messages are as late as the start, 0.3 s later than usual": Exchange(
        [(0, 645), (834, 1_434), (2_129, 2_329), (2_743, 3_000)],
        [
            (START, 0.817),
            *((UPDATE, at) for at in (0.817, 0.891, 1.055, 1.32, 1.485, 1.611)),
            *((EAGER_END, 1.912), (END, 1.912)),
        ],
        usual_lag_s=0.5,
        bytes_per_s=1_660,
    ),
    "one late start": Exchange(
        [(500, 1_000), (1_400, 1_500)],
        [(START, 1.14), (UPDATE, 1.2), (UPDATE, 1.77), (EAGER_END, 1.96), (END, 2.05)],
        usual_lag_s=0.34,
    ),
    "one late start, and no eager end": Exchange(
        [(500, 1_000), (1_400, 1_500)],
        [(START, 1.14), (UPDATE, 1.2), (UPDATE, 1.77), (END, 2.0)],
        usual_lag_s=0.34,
    ),
    "unknown lag: nothing is early or late at that of the start": Exchange(
        [(0, 800), (1_123, 1_523), (2_250, 2_650), (2_857, 3_057)],
        [
            (START, 0.796),
            *((UPDATE, at) for at in (0.796, 0.816, 0.936, 1.084)),
            *((EAGER_END, 1.377), (RESUME, 1.377), (UPDATE, 1.489), (UPDATE, 1.654)),
            *((EAGER_END, 1.786), (END, 2.037)),
        ],
        bytes_per_s=1_577,
        start_burst=CERTAINLY_DELAYED,
    ),
    "unknown lag: a late start": Exchange(
        [(500, 900), (1_300, 1_600)],
        [(START, 1.14), (UPDATE, 1.2), (UPDATE, 1.8), (EAGER_END, 2.15), (END, 2.3)],
    ),
    "unknown lag: a provider that needs 0.2 s of sound to start": Exchange(
        [(500, 900), (1_300, 1_600)],
        [(START, 1.0), (UPDATE, 1.2), (UPDATE, 1.8), (END, 2.1)],
    ),
    "unknown lag: a longer pause inside the turn": Exchange(
        [(500, 900), (1_700, 1_900)],
        [*((kind, 1.32) for kind in (START, UPDATE, UPDATE)), (UPDATE, 2.15), (END, 2.6)],
        start_burst=CERTAINLY_DELAYED,
    ),
    "previous lag: a longer pause inside the turn": Exchange(
        [(500, 900), (1_700, 1_900)],
        [*((kind, 1.32) for kind in (START, UPDATE, UPDATE)), (UPDATE, 2.15), (END, 2.6)],
        previous_lag_s=0.34,
        start_burst=CERTAINLY_DELAYED,
    ),
    "previous lag: measured 0.3 s too high": Exchange(
        [(500, 900), (1_400, 1_700), (2_800, 3_000)],
        [(START, 0.84), (UPDATE, 1.05), (UPDATE, 1.95), (END, 2.3)],
        previous_lag_s=0.64,
    ),
    "previous lag: a cough before the turn": Exchange(
        [(500, 550), (800, 1_100), (1_500, 1_600)],
        [(START, 1.14), (UPDATE, 1.3), (UPDATE, 1.88), (END, 2.15)],
        previous_lag_s=0.34,
    ),
    "previous lag: a resumed pause": Exchange(
        [(500, 800), (1_400, 1_600), (2_350, 2_500)],
        [
            *((START, 1.8), (UPDATE, 1.8), (UPDATE, 1.82), (EAGER_END, 2.16)),
            *((RESUME, 2.69), (UPDATE, 2.75), (END, 3.15)),
        ],
        previous_lag_s=0.34,
        start_burst=CERTAINLY_DELAYED,
    ),
}
"""The last word of each turn ends at `LAST_WORDS[name]`; by default it is the second sound."""

LAST_WORDS = dict.fromkeys(EXCHANGES, 1) | {
    "previous lag: a cough before the turn": 2,
    "previous lag: a resumed pause": 2,
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_messages_show_where_the_turn_ended(name: str) -> None:
    sounds, last = [*EXCHANGES[name].sounds, (float("inf"), 0.0)], LAST_WORDS[name]
    cut = find_end(EXCHANGES[name].last).position
    assert sounds[last][1] <= cut <= sounds[last + 1][0]


# -- random turns

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
    slow_s: tuple[float, float] | None = None
    """How much more than the usual lag the socket has, from and to; None if no lag is usual."""


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
    high_s, usual_lag_s = provider.measured_too_high_s, None
    if provider.slow_s:
        usual_lag_s, slow_s = lag_s + detects_s, rng.uniform(*provider.slow_s)
        arrived = [(kind, at + slow_s) for kind, at in arrived]
    previous_lag_s = None if high_s is None else lag_s + detects_s + high_s
    sounds.append((following, following + 400))
    return Exchange(sounds, arrived, usual_lag_s, previous_lag_s), (last, following)


@pytest.mark.parametrize(
    ("provider", "most"),
    [
        (Provider(), 0),
        (Provider(eager_s=0.25), 0),
        (Provider(late_share=0.05), 0),
        (Provider(late_share=0.05, eager_s=0.25), 0),
        (Provider(late_start=True), 26),
        (Provider(late_start=True, eager_s=0.25), 3),
        (Provider(measured_too_high_s=0.0), 0),
        (Provider(measured_too_high_s=0.3), 0),
        (Provider(measured_too_high_s=0.3, eager_s=0.25), 0),
        (Provider(slow_s=(0.0, 0.0)), 0),
        (Provider(slow_s=(0.0, 0.0), late_share=0.05), 0),
        (Provider(slow_s=(0.0, 0.0), late_start=True), 0),
        (Provider(slow_s=(0.2, 1.0)), 1),
        (Provider(slow_s=(0.2, 1.0), eager_s=0.25), 1),
    ],
)
def test_few_random_turns_are_cut_at_another_pause(provider: Provider, most: int) -> None:
    rng, wrong = random.Random(1), 0
    for _ in range(TURNS):
        exchange, (earliest, latest) = _draw(rng, provider)
        wrong += not earliest <= find_end(exchange.last).position <= latest
    assert wrong <= most
