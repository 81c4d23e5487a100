"""The plan of a pure call: plain data, drawn from a seed."""

import random
from enum import StrEnum
from typing import Final, NamedTuple

from tests.simulation.provider_model import ON_TIME, Delays
from worker.stt.routes import PROVIDERS

MAX_JITTER_S: Final = 0.15
MAX_LAG_S: Final = 0.75
"""Maximum lag of a drawn call. At replay speed, and with the jitter, it is within the limit."""


class Stall(StrEnum):
    """Part that stalls once or twice in a call, for up to two seconds each."""

    NONE = "nothing"
    DOWN = "the way from the provider"
    UP = "the way to the provider"
    BOTH = "both ways"
    WORKER = "the worker"


STALLS: Final = tuple(stall for stall in Stall if stall is not Stall.NONE)


class Promise(StrEnum):
    """What the guarantees promise of a call (guarantees, "How exact the end of a turn is")."""

    EXACT = "promised"
    """Every turn ends in its place. Word times, or nothing stalls and no single message is late."""
    RARE = "single late messages"
    """One call in a thousand loses or repeats words, if its sockets are lost."""
    BEYOND = "stalls"
    """Nothing: messages may come later than the limit, and words of two turns together."""


class CallPlan(NamedTuple):
    """Parameters of a call. The rest, such as the speech, comes from the seed too."""

    seed: int
    provider: str = "cartesia"
    delays: Delays = ON_TIME
    stall: Stall = Stall.NONE
    losses: int = 0
    """Number of sockets lost."""
    words_at_most: int = 6
    """Maximum number of words in a turn."""
    update_interval_ms: int = 500
    rewording: bool = False
    """Whether the provider words a replay differently."""

    @property
    def promise(self) -> Promise:
        """What is promised of it."""
        if PROVIDERS[self.provider].word_times:
            return Promise.EXACT
        if self.stall is not Stall.NONE:
            return Promise.BEYOND
        return Promise.RARE if self.delays.late_share else Promise.EXACT


def draw_call(seed: int, provider: str = "") -> CallPlan:
    """Draw a call. With a `provider`, only that is not drawn."""
    rng = random.Random(f"{seed} call")
    name = rng.choice(("cartesia", "flux"))
    delays = draw_delays(rng, (0.0, MAX_LAG_S), rng.choice((0.0, 0.03, 0.05)))
    late_s = rng.choice((0.3, 1.0, 3.0))
    plan = CallPlan(
        seed,
        provider or name,
        delays,
        rng.choice((*4 * [Stall.NONE], *STALLS)),
        rng.choice((0, rng.randint(1, 3), rng.randint(3, 9))),
        rng.choice((6, 6, 30)),
        rng.choice((0, 500, 500)),
        rng.random() < 0.15,
    )
    if PROVIDERS[plan.provider].word_times:
        return plan._replace(delays=delays._replace(late_s=late_s))
    return plan


def draw_delays(
    rng: random.Random, lag_s: tuple[float, float] = (0.0, 0.3), late_share: float = 0.03
) -> Delays:
    """Draw the delays of a call's provider, whose lag is between two values."""
    return Delays(rng.uniform(*lag_s), rng.uniform(0, MAX_JITTER_S), late_share)
