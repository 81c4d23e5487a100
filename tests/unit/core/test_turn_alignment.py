"""Alignments of a turn's messages: which pause ended the turn, if messages are late."""

from collections.abc import Sequence
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.turn_alignment import (
    LATE_COST,
    LATE_COST_PER_S,
    NOISE_COST,
    ON_TIME_S,
    Message,
    Region,
    ending_costs,
)
from worker.core.turn_tracker import ProviderInput

LAG_S = 0.3
START, UPDATE, EAGER_END, RESUME, END = ProviderInput

Sent = tuple[ProviderInput, float]
"""A message, and when the audio was sent that caused it."""


def _regions(sounds: Sequence[tuple[float, float]], now: float) -> list[Region]:
    """Return the regions of these sounds, each from and to a second."""
    regions = [Region(-inf, inf, inf, 0.0, 0)]
    nexts = [*(begin for begin, _ in sounds[1:]), now]
    for before, ((begin, end), over) in enumerate(zip(sounds, nexts, strict=True)):
        proposable = end + 0.15 if end + 0.15 <= over else inf
        endable = end + 0.2 if end + 0.2 <= over else inf
        regions.append(Region(begin, proposable, endable, over, before))
    return regions


def _arrive(sent: Sequence[Sent], late_s: dict[int, float]) -> list[Message]:
    """Return the messages as they arrive: in order, the given ones late."""
    messages = list[Message]()
    for at, (kind, sent_at) in enumerate(sent):
        own = sent_at + LAG_S + late_s.get(at, 0.0)
        before = messages[-1].at if messages else -inf
        arrived = max(own, before)
        messages.append(Message(kind, arrived, arrived, own <= before))
    return messages


def _ended(costs: Sequence[float]) -> int:
    """Return the number of the sound after which the turn ended."""
    assert min(costs) < inf
    return costs.index(min(costs))


TWO_SOUNDS = [(0.5, 1.0), (1.3, 1.5), (2.5, 3.0)]
TURN = [(START, 0.54), (UPDATE, 1.0), (UPDATE, 1.5), (EAGER_END, 1.74), (END, 1.98)]
RESUMED = [*TURN[:2], (EAGER_END, 1.24), (RESUME, 1.34), *TURN[2:]]


@pytest.mark.parametrize("turn", [TURN, RESUMED], ids=["without a proposal", "resumed"])
@pytest.mark.parametrize("late", range(5))
@pytest.mark.parametrize("late_s", [0.0, 0.2, 0.5, 1.0, 2.0])
def test_one_late_message_does_not_move_the_end(turn: list[Sent], late: int, late_s: float) -> None:
    """The next turn begins a second after the last word, and its start arrives in order."""
    messages = _arrive([*turn, (START, 2.54)], {late: late_s})
    start, messages = messages[-1], messages[:-1]
    begins = start.at == messages[-1].at
    if not begins and start.at < messages[-1].at + ON_TIME_S:
        return  # the worker waits for messages that arrive together
    costs = ending_costs(_regions(TWO_SOUNDS, messages[-1].at), messages, LAG_S, int(begins))
    assert _ended(costs) == 2


def test_messages_on_time_cost_nothing() -> None:
    costs = ending_costs(_regions(TWO_SOUNDS, 2.28), _arrive(TURN, {}), LAG_S)
    assert costs[2] == 0


def test_burst_costs_as_much_as_its_first_message() -> None:
    messages = _arrive(RESUMED, {4: 2.0})
    assert all(message.together for message in messages[5:])
    costs = ending_costs(_regions(TWO_SOUNDS[:2], messages[-1].at), messages, LAG_S)
    late_s = messages[4].at - LAG_S - messages[-1].at - ON_TIME_S
    assert costs[2] == pytest.approx(max(0.0, LATE_COST + LATE_COST_PER_S * late_s) * (late_s > 0))


def test_resume_belongs_to_the_sound_after_the_proposal() -> None:
    """The turn ends after the sound that resumed it, although all messages arrive late."""
    messages = _arrive(RESUMED, {2: 3.0})
    costs = ending_costs(_regions(TWO_SOUNDS, messages[-1].at), messages, LAG_S, 1)
    assert _ended(costs) == 2
    assert costs[1] >= costs[2] + LATE_COST


def test_early_message_decides() -> None:
    """The end cannot be due to a pause that was sent just before it arrived."""
    sounds = [(0.5, 1.0), (2.0, 2.2)]
    turn = [(START, 0.54), (UPDATE, 1.0), (END, 1.48)]
    messages = _arrive(turn, {2: 0.7})
    costs = ending_costs(_regions(sounds, messages[-1].at), messages, LAG_S)
    assert _ended(costs) == 1
    assert costs[2] > costs[1]


def test_proposal_before_its_pause_costs_more_than_late_messages() -> None:
    """The provider became slow inside the turn. The eager end came 10 ms after the next sound."""
    usual_lag_s = 0.1
    kinds = [START, UPDATE, UPDATE, UPDATE, UPDATE, EAGER_END, END]
    times = [0.0, 0.1, 0.85, 1.05, 1.25, 1.36, 1.54]
    arrivals = zip(kinds, times, strict=True)
    messages = [Message(kind, at, at, together=False) for kind, at in arrivals]
    regions = [
        Region(-inf, inf, inf, -0.16, 0),
        Region(-0.16, 0.62, 0.66, 1.05, 0),
        Region(1.05, 1.45, 1.45, 1.54, 1),
    ]
    assert _ended(ending_costs(regions, messages, usual_lag_s)) == 1


def test_start_of_the_next_turn_that_is_missing_costs() -> None:
    """A sound after the pause should have started a turn long ago: it belongs to this one."""
    sounds = [(0.5, 1.0), (1.3, 1.5)]
    turn = [(START, 0.54), (UPDATE, 1.0), (END, 2.1)]
    messages = _arrive(turn, {})
    assert ending_costs(_regions(sounds, messages[-1].at), messages, LAG_S)[1] >= LATE_COST


def test_turn_ends_before_the_sound_of_the_next_start() -> None:
    costs = ending_costs(_regions(TWO_SOUNDS[:2], 2.28), _arrive(TURN, {}), LAG_S, 1)
    assert costs[-1] == inf
    assert costs[1] < inf


def test_sound_that_started_no_turn_costs() -> None:
    sounds = [(0.1, 0.15), *TWO_SOUNDS]
    costs = ending_costs(_regions(sounds, 2.28), _arrive(TURN, {}), LAG_S)
    assert _ended(costs) == 3
    assert costs[3] == NOISE_COST


def test_pause_that_is_too_short_ends_no_turn() -> None:
    sounds = [(0.5, 1.0), (1.1, 1.5)]
    costs = ending_costs(_regions(sounds, 2.28), _arrive(TURN, {}), LAG_S)
    assert costs[1] == inf
    assert costs[2] == 0


def test_process_that_stood_still_makes_no_message_late() -> None:
    messages = _arrive(TURN, {0: 1.0})
    slept = [message._replace(earliest_at=message.at - 1.0) for message in messages]
    regions = _regions(TWO_SOUNDS[:2], messages[-1].at)
    assert ending_costs(regions, slept, LAG_S)[2] == 0
    assert ending_costs(regions, messages, LAG_S)[2] >= LATE_COST


@given(
    sounds=st.lists(st.tuples(st.floats(0.2, 1.0), st.floats(0.0, 0.8)), min_size=1, max_size=6),
    late=st.integers(0, 30),
    late_s=st.floats(0.0, 3.0),
)
def test_one_late_message_costs_at_most_once(
    sounds: list[tuple[float, float]], late: int, late_s: float
) -> None:
    """Whatever the turn is like, the true end costs no more than one message that is so late."""
    spans, at = list[tuple[float, float]](), 0.5
    turn = list[Sent]()
    for sound_s, pause_s in sounds:
        spans.append((at, at + sound_s))
        proposed = bool(turn) and turn[-1][0] is EAGER_END
        if not turn or proposed:
            turn.append((RESUME if proposed else START, at))
        turn.append((UPDATE, at + sound_s))
        if pause_s > 0.25:
            turn.append((EAGER_END, at + sound_s + 0.24))
        at += sound_s + pause_s
    ended_at = spans[-1][1]
    if turn[-1][0] is not EAGER_END:
        turn.append((EAGER_END, ended_at + 0.24))
    turn.append((END, ended_at + 0.48))
    messages = _arrive(turn, {late: late_s})
    costs = ending_costs(_regions(spans, messages[-1].at), messages, LAG_S)
    assert costs[len(spans)] <= LATE_COST + LATE_COST_PER_S * late_s
