"""Turns as Flux reports them, from any events of an engine."""

from typing import Final, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.local.emulator.engines.base import EndTrigger, EngineEvent, EventKind, Word
from worker.local.emulator.providers.flux_turns import FluxTurns
from worker.local.emulator.turn_info import TurnInfo

START: Final = "turn.start"
UPDATE: Final = "turn.update"
EAGER: Final = "turn.eager_end"
RESUME: Final = "turn.resume"
END: Final = "turn.end"
PROGRESS: Final = "progress"

# From each state, the messages that may follow and the state after them.
NEXT = {
    "Initial": {UPDATE: "Initial", START: "TurnOngoing"},
    "TurnOngoing": {UPDATE: "TurnOngoing", EAGER: "AwaitingEnd", END: "Initial"},
    "AwaitingEnd": {UPDATE: "AwaitingEnd", RESUME: "TurnOngoing", END: "Initial"},
}


def event(kind: EventKind, text: str | None = None, trigger: EndTrigger = "model") -> EngineEvent:
    words = tuple(Word(word, 0.0, 0.2) for word in (text or "").split())
    return EngineEvent(kind, text, words, trigger=trigger)


def sent(*events: EngineEvent, eager: bool = True) -> list[tuple[str, str | None]]:
    turns = FluxTurns(eager=eager)
    return [(each.kind, each.transcript) for given in events for each in turns.admit(given)]


SPOKEN = [event(START), event(UPDATE, "a"), event(UPDATE, "a b"), event(EAGER, "a b")]

STORIES = [
    ([event(PROGRESS), event(PROGRESS)], [(UPDATE, ""), (UPDATE, "")]),
    ([event(START), event(PROGRESS)], [(UPDATE, "")]),
    ([event(START), event(END, "")], []),
    ([event(START), event(UPDATE, " a")], [(START, "a")]),
    # A message takes the place of the update.
    ([event(START), event(UPDATE, "a"), event(PROGRESS)], [(START, "a")]),
    (
        [event(START), event(UPDATE, "a"), event(PROGRESS), event(PROGRESS)],
        [(START, "a"), (UPDATE, "a")],
    ),
    ([*SPOKEN, event(END, "a b")], [(START, "a"), (EAGER, "a b"), (END, "a b")]),
    (
        [*SPOKEN, event(RESUME), event(UPDATE, "a b c"), event(END, "a b c")],
        [(START, "a"), (EAGER, "a b"), (RESUME, "a b"), (END, "a b c")],
    ),
    # The text after an eager end differs.
    (
        [*SPOKEN, event(END, "a b c")],
        [(START, "a"), (EAGER, "a b"), (RESUME, "a b c"), (END, "a b c")],
    ),
    # The first text comes with the end.
    ([event(START), event(END, "a")], [(START, "a"), (END, "a")]),
    ([event(START), event(EAGER, "a")], [(START, "a"), (EAGER, "a")]),
    # A flush ends no turn.
    ([*SPOKEN[:3], event(END, "a b", "flush")], [(START, "a"), (UPDATE, "a b")]),
    ([*SPOKEN[:2], event(END, "a", "flush")], [(START, "a")]),
    ([event(START), event(END, "a", "flush")], [(START, "a")]),
    ([*SPOKEN[:2], event(END, "a", "manual")], [(START, "a"), (END, "a")]),
    ([event(PROGRESS, "", "manual")], [(PROGRESS, "")]),
    ([event(START), event(END, "", "manual")], [(PROGRESS, None)]),
]


@pytest.mark.parametrize(("events", "messages"), STORIES)
def test_engine_events_become_messages(
    events: list[EngineEvent], messages: list[tuple[str, str | None]]
) -> None:
    assert sent(*events) == messages


def test_turns_without_threshold_have_no_eager_end() -> None:
    events = [*SPOKEN, event(RESUME), event(UPDATE, "a b c"), event(EAGER, "a b c")]
    assert sent(*events, event(END, "a b c"), eager=False) == [(START, "a"), (END, "a b c")]


def test_turn_index_and_window_follow_an_end() -> None:
    turns = FluxTurns(eager=False)
    placed = []
    story: list[tuple[float, EventKind, str | None]] = [
        (0.25, PROGRESS, None),
        (0.4, UPDATE, "a"),
        (0.9, END, "a"),
        (1.0, PROGRESS, None),
        (1.25, PROGRESS, None),
        (1.1, UPDATE, "b"),  # the window never shrinks
    ]
    for at, kind, text in story:
        for info in turns.admit(EngineEvent(kind, text, decoded_s=at)):
            assert isinstance(info, TurnInfo)
            placed.append((info.turn_index, info.window_start_s, info.decoded_s))
    assert placed == [(0, 0, 0.25), (0, 0, 0.4), (0, 0, 0.9), (1, 0.9, 1.25), (1, 0.9, 1.25)]


KINDS: list[EventKind] = list(get_args(EventKind))
TRIGGERS: list[EndTrigger] = list(get_args(EndTrigger))
ENGINE_EVENTS = st.builds(
    EngineEvent,
    st.sampled_from(KINDS),
    st.none() | st.text("ab ", max_size=4),
    decoded_s=st.floats(0, 9),
    trigger=st.sampled_from(TRIGGERS),
)


@settings(max_examples=500)
@given(events=st.lists(ENGINE_EVENTS, max_size=40), eager=st.booleans())
def test_any_engine_events_give_flux_order(events: list[EngineEvent], *, eager: bool) -> None:
    turns = FluxTurns(eager=eager)
    state, index, eager_text, window_end = "Initial", 0, None, 0.0
    for given_event in events:
        for info in turns.admit(given_event):
            if not isinstance(info, TurnInfo):
                assert (info.kind, info.trigger) == (PROGRESS, "manual")
                continue
            assert info.kind in NEXT[state]
            assert info.turn_index == index
            assert info.window_start_s <= info.decoded_s
            assert info.decoded_s >= window_end
            window_end = info.decoded_s
            if state == "Initial" and info.kind == UPDATE:
                assert info.transcript == ""
            if info.kind in (START, EAGER):
                assert info.transcript
            if info.kind == END and state == "AwaitingEnd":
                assert info.transcript == eager_text
            if info.kind == EAGER:
                assert eager
                eager_text = info.transcript
            index += info.kind == END
            state = NEXT[state][info.kind]
        assert turns.state == state
