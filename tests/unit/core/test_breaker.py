"""One worker's breaker of a provider: what opens it, who may probe, what the fleet overrides."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import breaker as module
from worker.core.breaker import (
    FIRST_PROBE_S,
    JITTER,
    MAX_FAILURES,
    MAX_PROBE_S,
    PROBE_LEASE_S,
    SILENCE_S,
    WINDOW_S,
    Breaker,
    BreakerState,
)

CLOSED, OPEN = BreakerState.CLOSED, BreakerState.OPEN
PROBE_DUE, PROBING = BreakerState.PROBE_DUE, BreakerState.PROBING
AFTER_JITTER = 1 + JITTER


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(random.Random(1))
    for number in range(MAX_FAILURES):
        breaker.failed(f"s{number}", at)
    assert breaker.state(at) is OPEN
    return breaker


@pytest.mark.parametrize(
    ("met", "state"),
    [
        ("a0 b0 c0 d0", CLOSED),
        ("a0 b0 c0 d0 e0", OPEN),
        ("a0 a1 a2 a3 a4 a5 a6 a7", CLOSED),
        ("a0 a1 a2 a3 a4 a5 b6", OPEN),
        ("b0 a1 a2 a3 a4", OPEN),
        ("a0 b1 c2 d3 ok e4", CLOSED),
        ("a0 b1 ok c2 d3 e4 f5 g6", OPEN),
        ("a0 b1 c2 d3 e11", CLOSED),
        ("a0 b1 c2 d3 e10", OPEN),
    ],
)
def test_rule_of_opening(met: str, state: BreakerState) -> None:
    breaker, now = Breaker(), 0.0
    for each in met.split():
        if each == "ok":
            breaker.succeeded()
        else:
            now = float(each[1:])
            breaker.failed(each[0], now)
    assert breaker.state(now) is state


def test_success_of_another_socket_leaves_breaker_open() -> None:
    breaker = opened()
    breaker.succeeded()
    assert breaker.state(0.0) is OPEN


def test_probes_are_further_apart_after_each_failure() -> None:
    breaker, now = opened(), 0.0
    for wait_s in (2, 4, 8, 16, 30, 30):
        assert breaker.state(now + wait_s * (1 - JITTER) - 0.01) is OPEN
        now += wait_s * AFTER_JITTER
        assert breaker.state(now) is PROBE_DUE
        assert breaker.take_probe(now)
        assert breaker.state(now) is PROBING
        assert not breaker.take_probe(now)
        breaker.probe_ended(now, succeeded=False)
    breaker.probe_ended(now, succeeded=True)
    assert breaker.state(now) is CLOSED
    assert not breaker.take_probe(now)
    assert (FIRST_PROBE_S, MAX_PROBE_S) == (2.0, 30.0)


def test_probe_without_result_is_replaced() -> None:
    breaker = opened()
    now = FIRST_PROBE_S * AFTER_JITTER
    assert breaker.take_probe(now)
    assert not breaker.take_probe(now + PROBE_LEASE_S - 0.01)
    assert breaker.take_probe(now + PROBE_LEASE_S)


def test_report_holds_what_the_fleet_does_not_know() -> None:
    breaker = Breaker()
    breaker.failed("a", 0.0)
    breaker.succeeded()
    breaker.failed("b", 1.0)
    report = breaker.report(1.0)
    assert report.succeeded
    assert [failure.session for failure in report.failures] == ["b"]
    breaker.failed("c", 1.5)
    breaker.adopt(report, "closed", 2.0, granted=False)
    report = breaker.report(2.0)
    assert not report.succeeded
    assert [failure.session for failure in report.failures] == ["c"]
    assert breaker.report(1.5 + WINDOW_S + 0.1).failures == ()


@pytest.mark.parametrize(
    ("state", "granted", "found"),
    [
        ("closed", False, CLOSED),
        ("open", False, OPEN),
        ("probing", False, PROBING),
        ("probing", True, PROBE_DUE),
    ],
)
@pytest.mark.parametrize("first", ["closed", "open"])
def test_state_of_the_fleet_is_adopted(
    first: str, state: str, found: BreakerState, *, granted: bool
) -> None:
    breaker = Breaker() if first == "closed" else opened()
    breaker.adopt(breaker.report(0.0), state, 0.0, granted=granted)
    assert breaker.state(0.0) is found


def test_fleet_alone_allows_probes_while_it_answers() -> None:
    breaker, now = opened(), 0.0
    for _ in range(100):
        now += 1.0
        breaker.adopt(breaker.report(now), "open", now, granted=False)
        assert not breaker.take_probe(now + 0.9)
        assert breaker.report(now).wants_probe
    assert breaker.take_probe(now + SILENCE_S), "the fleet does not answer any more"


def test_failures_during_an_exchange_keep_the_breaker_open() -> None:
    breaker = Breaker()
    report = breaker.report(0.0)
    for number in range(MAX_FAILURES):
        breaker.failed(f"s{number}", 0.5)
    breaker.adopt(report, "closed", 1.0, granted=False)
    assert breaker.state(1.0) is OPEN


@pytest.mark.parametrize(("succeeded", "state"), [(True, CLOSED), (False, OPEN)])
def test_older_reply_does_not_override_a_probe(state: BreakerState, *, succeeded: bool) -> None:
    breaker = opened()
    breaker.adopt(breaker.report(0.0), "probing", 1.0, granted=True)
    assert breaker.take_probe(1.0)
    report = breaker.report(1.5)
    breaker.probe_ended(1.6, succeeded=succeeded)
    breaker.adopt(report, "probing", 1.7, granted=True)
    assert breaker.state(1.7) is state
    assert breaker.report(1.7).probe == ("ok" if succeeded else "failed")


events = st.lists(
    st.tuples(
        st.floats(0, 4),
        st.sampled_from(["a", "b", "c", "ok", "probe", "closed", "open", "probing", "granted"]),
    ),
    max_size=60,
)


@given(events)
def test_single_session_never_opens_breaker(met: list[tuple[float, str]]) -> None:
    breaker, now = Breaker(), 0.0
    for wait_s, event in met:
        now += wait_s
        if event == "ok":
            breaker.succeeded()
        elif event == "closed":
            breaker.adopt(breaker.report(now), "closed", now, granted=False)
        else:
            breaker.failed("only", now)
        assert breaker.state(now) is CLOSED


@given(events)
def test_breaker_opens_only_by_the_rule(met: list[tuple[float, str]]) -> None:
    """Without the fleet: the failures of a window since the last success, of two sessions."""
    breaker, now, failures = Breaker(), 0.0, list[tuple[float, str]]()
    for wait_s, event in met:
        now += wait_s
        if event == "ok":
            breaker.succeeded()
            failures.clear()
        elif event in {"a", "b", "c"}:
            breaker.failed(event, now)
            failures.append((now, event))
        if breaker.state(now) is not CLOSED:
            recent = [name for at, name in failures if now - at <= module.WINDOW_S]
            assert len(recent) >= MAX_FAILURES
            assert len({*recent}) > 1
            return


@given(events)
def test_one_probe_at_a_time_and_bounded_memory(met: list[tuple[float, str]]) -> None:
    breaker, now, probing_until = opened(), 0.0, 0.0
    for wait_s, event in met:
        now += wait_s
        if event == "probe":
            if breaker.take_probe(now):
                assert now >= probing_until
                probing_until = now + PROBE_LEASE_S
            elif now < probing_until:
                breaker.probe_ended(now, succeeded=False)
                probing_until = 0.0
        elif event == "ok":
            breaker.succeeded()
        elif event in {"open", "probing", "granted"}:
            state = "open" if event == "open" else "probing"
            breaker.adopt(breaker.report(now), state, now, granted=event == "granted")
        elif event in {"a", "b", "c"}:
            breaker.failed(event, now)
        assert breaker.state(now) is not CLOSED
        assert len(breaker.report(now).failures) <= MAX_FAILURES
