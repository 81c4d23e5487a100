"""Whether a session stays at its provider, goes to another one, or returns to the preferred one.

A session leaves a provider that does not work for it, also inside a turn: the open turn's audio is
sent again to the next one. It returns only between turns.
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from worker.core.breaker import BreakerState

MIN_STAY_S = 30.0
"""Time after a switch before a session returns to the preferred provider.

A provider may fail for one session only, so that its breaker never opens. Each return then costs
the failover time again; this limits it to once in 30 s.
"""


_USABLE = (BreakerState.CLOSED, BreakerState.PROBE_DUE)
"""States of a provider that a session may go to, the better one first."""


class Option(NamedTuple):
    """One of the providers that may serve the session."""

    provider: str
    breaker: BreakerState


class Situation(NamedTuple):
    """What a session knows about the provider that serves it. Times are in seconds."""

    current: str
    failing_s: float | None
    """Time since the provider was refused, silent or lost; None while it works."""
    stuck: bool
    """Whether the provider is stuck inside the open turn: it takes audio and says nothing."""
    inside_turn: bool
    since_switch_s: float
    """Time since the session came to this provider from another one; infinite if it never did."""


class Move(Enum):
    """What a session does."""

    STAY = "stay"
    SWITCH = "switch"
    """Go to another provider, because the current one does not work."""
    RETURN = "return"
    """Go back to a provider that is preferred to the current one, between turns."""


class Decision(NamedTuple):
    """What a session does, and at which provider it is then."""

    move: Move
    provider: str


def decide(situation: Situation, options: Sequence[Option], failover_s: float) -> Decision:
    """Decide where a session goes.

    `options` are its providers in the order of preference, with the current one among them. If the
    breaker of the chosen provider is `PROBE_DUE`, the session has to take the probe first, and
    stays if another session was faster.
    """
    current = situation.current
    if situation.since_switch_s >= failover_s:
        if situation.stuck or situation.failing_s is not None:
            other = _alternative(current, options)
            if other is not None and _must_leave(situation, options, failover_s):
                return Decision(Move.SWITCH, other)
        elif not situation.inside_turn and situation.since_switch_s >= MIN_STAY_S:
            for option in options:
                if option.provider == current:
                    break
                if option.breaker in _USABLE:
                    return Decision(Move.RETURN, option.provider)
    return Decision(Move.STAY, current)


def _must_leave(situation: Situation, options: Sequence[Option], failover_s: float) -> bool:
    """Return whether a provider that fails is given up.

    A provider that fails for other sessions too is not waited for.
    """
    if situation.stuck or (situation.failing_s or 0.0) >= failover_s:
        return True
    return Option(situation.current, BreakerState.CLOSED) not in options


def _alternative(current: str, options: Sequence[Option]) -> str | None:
    """Return the provider to go to; None if none is better than the current one.

    If every breaker is open, the session tries one provider after another.
    """
    for usable in _USABLE:
        for option in options:
            if option.breaker is usable and option.provider != current:
                return option.provider
        if Option(current, usable) in options:
            return None
    if len(options) == 1:
        return None
    names = [option.provider for option in options]
    return names[(names.index(current) + 1) % len(names)]
