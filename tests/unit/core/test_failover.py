"""Where a session goes: it stays, switches to another provider, or returns to the preferred one."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.breaker import BreakerState
from worker.core.failover import MIN_STAY_S, Decision, Move, Option, Situation, decide

FAILOVER_S = 2.0
STATES = {
    "closed": BreakerState.CLOSED,
    "open": BreakerState.OPEN,
    "due": BreakerState.PROBE_DUE,
    "probing": BreakerState.PROBING,
}


def situation(current: str, about: str) -> Situation:
    """Read `failing=1 stuck turn switched=3`."""
    given = dict(each.partition("=")[::2] for each in about.split())
    return Situation(
        current,
        float(given["failing"]) if "failing" in given else None,
        stuck="stuck" in given,
        inside_turn="turn" in given,
        since_switch_s=float(given.get("switched", inf)),
    )


def options(text: str) -> list[Option]:
    """Read `a=closed b=open`."""
    pairs = (each.split("=") for each in text.split())
    return [Option(name, STATES[state]) for name, state in pairs]


@pytest.mark.parametrize(
    ("current", "about", "given", "move", "to"),
    [
        # It works.
        ("a", "", "a=closed b=closed", "stay", "a"),
        ("a", "turn", "a=open b=closed", "stay", "a"),
        # It fails: after the failover time, at once if it fails for others too, or is stuck.
        ("a", "failing=1.9", "a=closed b=closed", "stay", "a"),
        ("a", "failing=2", "a=closed b=closed", "switch", "b"),
        ("a", "failing=2 turn", "a=closed b=closed", "switch", "b"),
        ("a", "failing=0 turn", "a=open b=closed", "switch", "b"),
        ("a", "failing=0 turn", "a=probing b=closed", "switch", "b"),
        ("a", "stuck turn", "a=closed b=closed", "switch", "b"),
        # The next one may be no better.
        ("a", "failing=9 turn", "a=closed", "stay", "a"),
        ("a", "stuck turn", "a=open", "stay", "a"),
        ("a", "failing=9", "a=closed b=open", "stay", "a"),
        ("a", "stuck turn", "a=closed b=probing", "stay", "a"),
        ("a", "failing=9", "a=closed b=due", "stay", "a"),
        ("a", "failing=9", "a=closed b=open c=closed", "switch", "c"),
        ("a", "failing=9", "a=due b=open", "stay", "a"),
        ("a", "failing=9", "a=open b=open c=due", "switch", "c"),
        ("a", "failing=9", "a=due b=open c=closed", "switch", "c"),
        ("a", "failing=9", "a=open b=open c=open", "switch", "b"),
        ("c", "failing=9", "a=open b=open c=open", "switch", "a"),
        ("b", "failing=9", "a=closed b=closed c=closed", "switch", "a"),
        # Not right after a switch.
        ("b", "failing=1.9 switched=1.9", "a=closed b=open", "stay", "b"),
        ("b", "failing=1.9 switched=2", "a=closed b=open", "switch", "a"),
        ("b", "stuck turn switched=1", "a=closed b=closed", "stay", "b"),
        # Back to the preferred one: between turns, while all is well, not too often.
        ("b", "switched=30", "a=closed b=closed", "return", "a"),
        ("b", "switched=30", "a=due b=closed", "return", "a"),
        ("b", "switched=29.9", "a=closed b=closed", "stay", "b"),
        ("b", "switched=30 turn", "a=closed b=closed", "stay", "b"),
        ("b", "switched=30", "a=open b=closed", "stay", "b"),
        ("b", "switched=30", "a=probing b=closed", "stay", "b"),
        ("c", "switched=30", "a=open b=closed c=closed", "return", "b"),
        ("b", "", "a=closed b=closed", "return", "a"),
    ],
)
def test_decisions(current: str, about: str, given: str, move: str, to: str) -> None:
    decision = decide(situation(current, about), options(given), FAILOVER_S)
    assert decision == Decision(Move(move), to)


breakers = st.sampled_from(BreakerState)
fleets = st.lists(breakers, min_size=1, max_size=4).map(
    lambda states: [Option("abcd"[at], state) for at, state in enumerate(states)]
)
seconds = st.floats(0, 100)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Situation, list[Option]]:
    given = draw(fleets)
    current = draw(st.sampled_from(given)).provider
    failing = draw(st.none() | seconds)
    stuck, inside = draw(st.booleans()), draw(st.booleans())
    switched = draw(seconds | st.just(inf))
    return Situation(current, failing, stuck, inside, switched), given


@given(cases(), st.floats(0.5, 60))
def test_decisions_keep_the_rules(case: tuple[Situation, list[Option]], failover_s: float) -> None:
    now, given = case
    move, to = decide(now, given, failover_s)
    states = dict(given)
    assert to in states
    assert (move is Move.STAY) == (to == now.current)
    if move is Move.STAY:
        return
    assert len(given) > 1
    assert now.since_switch_s >= failover_s
    if states[to] in {BreakerState.OPEN, BreakerState.PROBING}:
        assert BreakerState.CLOSED not in states.values()
    if move is Move.RETURN:
        assert not now.inside_turn
        assert now.failing_s is None
        assert not now.stuck
        names = [*states]
        assert names.index(to) < names.index(now.current)
    else:
        assert now.stuck or now.failing_s is not None


@given(
    st.lists(
        st.tuples(
            st.floats(0.05, 3),
            st.none() | seconds,
            st.booleans(),
            st.booleans(),
            breakers,
            breakers,
        ),
        max_size=60,
    ),
    st.floats(0.5, 5),
)
def test_switches_are_never_faster_than_failover(
    steps: list[tuple[float, float | None, bool, bool, BreakerState, BreakerState]],
    failover_s: float,
) -> None:
    now, current, moved_at = 0.0, "a", -inf
    for wait_s, failing_s, stuck, inside, first, second in steps:
        now += wait_s
        asked = Situation(current, failing_s, stuck, inside, now - moved_at)
        move, to = decide(asked, [Option("a", first), Option("b", second)], failover_s)
        if to != current:
            assert now - moved_at >= failover_s
            assert move is Move.SWITCH or now - moved_at >= MIN_STAY_S
            current, moved_at = to, now
