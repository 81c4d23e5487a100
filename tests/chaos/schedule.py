"""The schedule of a chaos run: what is broken when. Pure: all of it from the plan."""

import random
from heapq import heappop, heappush
from typing import Final, NamedTuple

from tests.chaos.faults import FAULTS
from tests.chaos.plan import Plan
from tests.chaos.script import scripted_sessions

STAGGER_S: Final = 0.1
"""Between the beginnings of the first sessions."""


class ScheduledFault(NamedTuple):
    """One fault that is due."""

    at_s: float
    """From the first word on."""
    fault: str
    """Its name in the table."""
    seed: int
    """Of what it chooses: how long, how many, and which of what is there then."""


def schedule(plan: Plan) -> tuple[ScheduledFault, ...]:
    """Draw every fault of a run: the same of the same plan, whatever the machine does meanwhile.

    They are due while somebody speaks, even if nothing delays a session; only where the service
    caps the sockets, sessions that catch up may be through before the last. Each draws from a seed
    of its own, so that what one finds to break does not change what another does.
    """
    rng = random.Random(f"{plan.seed} schedule")
    names = list(plan.faults or FAULTS)
    weights = [FAULTS[name].weight for name in names]
    until_s = speech_s(plan)
    strikes = []
    at_s = rng.expovariate(1 / plan.every_s)
    while at_s < until_s:
        (name,) = rng.choices(names, weights)
        strikes.append(ScheduledFault(round(at_s, 2), name, rng.getrandbits(32)))
        at_s += rng.expovariate(1 / plan.every_s)
    return tuple(strikes)


def speech_s(plan: Plan) -> float:
    """Return how long it takes to say everything, so many sessions at a time, if nothing breaks."""
    at_once = min(plan.sessions, plan.connections or plan.sessions)
    ends: list[float] = []
    last = 0.0
    for nth, voice in enumerate(scripted_sessions(plan)):
        began = heappop(ends) if nth >= at_once else nth * STAGGER_S
        heappush(ends, began + voice.seconds)
        last = max(last, began + voice.seconds)
    return last
