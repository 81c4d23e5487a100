"""How well a turn's messages fit each pause that may have ended it.

The provider sends every message because of audio: a start and a resume because a sound begins, an
update because of words, an eager end and an end because of a silence. It sends them in the order of
that audio. They arrive one lag later; some are late, and none is much earlier.

An alignment assigns each message to a region of the audio, in order. A message on time costs
nothing. A late one costs more the later it is. If it arrived together with the message before it,
it waited for that one, and costs nothing. An early one costs so much that it decides.

For each pause, `ending_costs` returns the cost of the cheapest alignment in which the turn ends
there. The pause with the lowest cost needs the fewest late messages, and the least delay. The costs
are logarithms of probabilities, rounded.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from worker.core.turn_tracker import ProviderInput

ON_TIME_S = 0.1
"""Delay beyond the lag up to which a message is on time."""
LATE_COST = 3.0
"""Cost of a late message: one in twenty is late, and e to the power of -3 is one in twenty."""
LATE_COST_PER_S = 1.0
"""Cost of each second of its delay: long delays are rarer, but not by much after a stall."""
EARLY_S = 0.1
"""Time by which a message may be early, because a steady lag varies so much."""
EARLY_COST_PER_S = 150.0
"""Cost of each further second: a message cannot arrive before the audio that causes it."""
NOISE_COST = 3.0
"""Cost of a sound that started no turn, such as a cough."""


class Message(NamedTuple):
    """A message about the turn."""

    kind: ProviderInput
    at: float
    """When it arrived."""
    earliest_at: float
    """Earliest time at which it may have arrived: before `at` if the process stood still."""
    together: bool
    """Whether it arrived together with the message before it."""


class Region(NamedTuple):
    """A sound and the pause after it; times are those of sending."""

    begins_at: float
    """The beginning of the sound."""
    proposable_at: float
    """When the pause is long enough to propose the turn's end; infinity if it never is."""
    endable_at: float
    """When the pause is long enough to end the turn; infinity if it never is."""
    over_at: float
    """The beginning of the next sound; the arrival of `turn.end` if there is none yet."""
    sounds_before: int
    """Number of sounds before it in the audio that is examined."""


def ending_costs(
    regions: Sequence[Region],
    messages: Sequence[Message],
    lag_s: float,
    following: int = 0,
) -> list[float]:
    """Return, for each region, the cost if the turn ended in its pause; infinity if it cannot.

    `messages` are those of the turn, up to its end. `following` is the number of messages of the
    next turn that arrived with it. The first region is all audio before the others.
    """
    costs = [0.0] * len(regions)
    proposed = False
    for message in messages:
        costs = [
            reached + _cost(message, region, lag_s, first=not at)
            for at, (region, reached) in enumerate(
                zip(regions, _reached(message.kind, regions, costs, proposed=proposed), strict=True)
            )
        ]
        proposed = message.kind is ProviderInput.EAGER_END
    # The sound after the pause starts the next turn, and the pause after that sound ends it, or is
    # at least proposed as its end. Those messages are late too, if they did not arrive.
    expected_at = messages[-1].at - lag_s
    for at, region in enumerate(regions[1:]):
        if not following:
            costs[at] += late_cost(expected_at - region.begins_at)
        else:
            costs[at] += _early_cost(region.begins_at - expected_at)
            if following == 1:
                costs[at] += late_cost(expected_at - region.proposable_at)
    if following:
        costs[-1] = inf
    return costs


def _reached(
    kind: ProviderInput, regions: Sequence[Region], costs: Sequence[float], *, proposed: bool
) -> list[float]:
    """Return, for each region, the lowest cost of the messages before one of this kind.

    `costs` are by the region of the message before it; `proposed` is whether that is an eager end.
    """
    if kind is ProviderInput.START:
        return [NOISE_COST * region.sounds_before for region in regions]
    if proposed and kind is ProviderInput.END:
        return [*costs]  # in the same pause
    if proposed and kind is ProviderInput.RESUME:
        return [costs[0], *costs[:-1]]  # at the next sound
    reached, least = list[float](), inf
    for cost in costs:
        least = min(least, cost)
        reached.append(least)
    return reached


def _cost(message: Message, region: Region, lag_s: float, *, first: bool) -> float:
    """Return the cost of a message sent because of this region."""
    earliest = latest = region.begins_at
    match message.kind:
        case ProviderInput.UPDATE:
            latest = region.over_at
        case ProviderInput.EAGER_END:
            earliest, latest = region.proposable_at, region.over_at
        case ProviderInput.END:
            earliest, latest = region.endable_at, region.over_at
    if first:  # its sounds and pauses are not known
        earliest, latest = -inf, region.over_at
    if earliest == inf:
        return inf
    early_s = earliest - (message.at - lag_s)
    if early_s > 0 or message.together:
        return _early_cost(early_s)
    return late_cost(message.earliest_at - lag_s - latest)


def _early_cost(early_s: float) -> float:
    return max(0.0, early_s - EARLY_S) * EARLY_COST_PER_S


def late_cost(delay_s: float) -> float:
    """Return the cost of a message that arrives this long after its lag."""
    late_s = delay_s - ON_TIME_S
    return LATE_COST + LATE_COST_PER_S * late_s if late_s > 0 else 0.0
