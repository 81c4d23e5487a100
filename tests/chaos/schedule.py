"""Fault schedule of a chaos run, derived from the plan alone. No I/O."""

import random
from heapq import heappop, heappush
from typing import Final, NamedTuple

from tests.chaos.faults import FAULTS
from tests.chaos.plan import Plan
from tests.chaos.script import scripted_sessions

STAGGER_S: Final = 0.1
"""Interval between the starts of the first sessions, in seconds."""


class ScheduledFault(NamedTuple):
    """One scheduled fault."""

    at_s: float
    """Seconds from the first word."""
    fault: str
    """Name of the fault in the table."""
    seed: int
    """Seed of its random choices: duration, number and targets."""


def schedule(plan: Plan) -> tuple[ScheduledFault, ...]:
    """Draw every fault of a run; the same plan always gives the same schedule.

    All faults are due while a session sends audio, even without delays. If the provider limits the
    sockets, sessions that catch up may end before the last fault. Each fault has its own seed, so
    that the targets of one do not change another.
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
    """Return the time it takes to send all sessions without faults, in seconds."""
    at_once = min(plan.sessions, plan.connections or plan.sessions)
    ends: list[float] = []
    last = 0.0
    for nth, voice in enumerate(scripted_sessions(plan)):
        began = heappop(ends) if nth >= at_once else nth * STAGGER_S
        heappush(ends, began + voice.seconds)
        last = max(last, began + voice.seconds)
    return last
