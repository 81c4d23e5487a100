"""The order of events: every state with every event."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.local.emulator.engines.base import EngineEvent, EventKind
from worker.local.emulator.providers.base import EngineFault
from worker.local.emulator.providers.cartesia import TRANSITIONS, State, TurnOrder

KINDS: list[EventKind] = [
    *("turn.start", "turn.update", "turn.eager_end", "turn.resume", "turn.end"),
]
WAY_TO: dict[State, list[EventKind]] = {
    "idle": [],
    "speaking": ["turn.start"],
    "eager_ended": ["turn.start", "turn.eager_end"],
}
# From each state to the events it admits, as the provider documents it.
ADMITTED = {
    "idle": {"turn.start"},
    "speaking": {"turn.update", "turn.eager_end", "turn.end"},
    "eager_ended": {"turn.resume", "turn.end"},
}


def event(kind: EventKind, text: str = "") -> EngineEvent:
    return EngineEvent(kind, None if kind in {"turn.start", "turn.resume"} else text)


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(WAY_TO, KINDS)))
def test_state_admits_documented_events(state: State, kind: EventKind) -> None:
    order = TurnOrder()
    for step in WAY_TO[state]:
        order.admit(event(step))
    assert order.state == state
    if kind in ADMITTED[state]:
        order.admit(event(kind))
        assert order.state == TRANSITIONS[state, kind]
    else:
        with pytest.raises(EngineFault, match=f"{kind} while {state}"):
            order.admit(event(kind))
        assert order.state == state


@pytest.mark.parametrize(
    ("first", "then", "fits"),
    [
        ("a", "a", True),
        ("a", "a b", True),
        ("", "", True),
        (" a", " a", True),
        ("a b", "a", False),
        ("a", "b", False),
        (" a", "a", False),
    ],
)
@pytest.mark.parametrize("kind", ["turn.update", "turn.eager_end", "turn.end"])
def test_transcript_cannot_shrink(kind: EventKind, first: str, then: str, *, fits: bool) -> None:
    order = TurnOrder()
    order.admit(event("turn.start"))
    order.admit(event("turn.update", first))
    if fits:
        order.admit(event(kind, then))
    else:
        with pytest.raises(EngineFault, match="takes back text"):
            order.admit(event(kind, then))


def test_new_turn_can_begin_with_any_text() -> None:
    order = TurnOrder()
    for turn in ("a b c", "x"):
        order.admit(event("turn.start"))
        order.admit(event("turn.end", turn))
    assert (order.state, order.transcript) == ("idle", "")


@pytest.mark.parametrize(
    "wrong",
    [EngineEvent("turn.start", "text"), EngineEvent("turn.end"), EngineEvent("turn.update")],
)
def test_only_documented_events_have_transcript(wrong: EngineEvent) -> None:
    order = TurnOrder()
    if wrong.kind != "turn.start":
        order.admit(EngineEvent("turn.start"))
    with pytest.raises(EngineFault, match="with transcript"):
        order.admit(wrong)


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.text("ab", max_size=3)), max_size=40))
def test_admitted_events_are_in_order(events: list[tuple[EventKind, str]]) -> None:
    order = TurnOrder()
    admitted = []
    for kind, text in events:
        try:
            order.admit(event(kind, text))
        except EngineFault:
            continue
        admitted.append((kind, text))
    kinds = [kind for kind, _ in admitted]
    assert kinds.count("turn.start") - kinds.count("turn.end") == (order.state != "idle")
    for (before, _), (after, _) in itertools.pairwise(admitted):
        assert (after == "turn.start") == (before == "turn.end")
        if before == "turn.eager_end":
            assert after in {"turn.resume", "turn.end"}
        assert after != "turn.resume" or before == "turn.eager_end"
