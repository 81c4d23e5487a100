"""The providers of one session: where it connects, when it moves, what the breakers learn."""

import math
from typing import Any

import pytest

from schemas.keys import Keys
from worker.bus.breaker import Breakers
from worker.core.breaker import FIRST_PROBE_S, MAX_FAILURES, BreakerState
from worker.core.connection_health import PING_INTERVAL_S
from worker.core.failover import MIN_STAY_S
from worker.errors import SttBusyError, SttPermanentError, SttTransientError
from worker.session.providers import MIN_WAIT_S, MOVE_CHECK_S, SessionProviders
from worker.settings import Settings
from worker.stt.choice import Candidate
from worker.stt.keys import ApiKey
from worker.stt.routes import Choice, find_routes
from worker.telemetry.counters import Counters
from worker.telemetry.logs import SessionName
from worker.telemetry.traces import SessionTrace, Tracing

FAILOVER_S = 2.0
LOST = SttTransientError("the socket was lost", status=1006)


class Call:
    """One session, the breakers of its worker, and a clock."""

    def __init__(self, names: str = "cartesia flux", last: str = "") -> None:
        self.now = 1_000.0
        chosen = names.split()
        settings = Settings(stt_providers=",".join(chosen))
        routes = find_routes(settings, {name: ApiKey(name, "key") for name in chosen}, {})
        choices = [
            Choice(route, Candidate(route.provider.name, route.offer.models[0])) for route in routes
        ]
        nothing: Any = None
        self.breakers = Breakers(nothing, Keys(), "w", chosen, lambda: self.now)
        self.stats = Counters()
        trace = SessionTrace("call-1", None, None, Tracing())
        self.providers = SessionProviders(
            SessionName("call-1", None),
            choices,
            self.breakers,
            FAILOVER_S,
            self.stats,
            trace,
            self.now,
            last,
        )

    def choose(self, *, inside_turn: bool = False) -> str:
        return self.providers.choose(self.now, inside_turn=inside_turn).name

    def check(self, opened_at: float, *, inside_turn: bool = False) -> bool:
        return self.providers.check(self.now, opened_at, inside_turn=inside_turn)

    def open_breaker(self, provider: str) -> None:
        for number in range(MAX_FAILURES):
            self.breakers.failed(provider, f"other-{number}")

    def wait_for_probe(self) -> None:
        self.now += 2 * FIRST_PROBE_S

    def state(self, provider: str) -> BreakerState:
        return self.breakers.states()[provider]


def test_first_socket_is_at_the_preferred_provider() -> None:
    assert Call().choose() == "cartesia"


def test_last_provider_serves_a_session_that_is_taken_over() -> None:
    assert Call(last="flux").choose(inside_turn=True) == "flux"
    assert Call(last="removed").choose() == "cartesia"


def test_session_that_is_taken_over_stays_for_a_while() -> None:
    call = Call(last="flux")
    assert call.choose() == "flux"
    call.providers.works()
    call.now += MIN_STAY_S
    assert call.check(call.now - 10)
    assert call.providers.current.name == "cartesia"


def test_open_breaker_is_avoided_by_new_sockets() -> None:
    call = Call()
    call.open_breaker("cartesia")
    assert call.choose() == "flux"


def test_open_breaker_is_avoided_by_a_parked_session() -> None:
    call = Call()
    assert call.choose() == "cartesia"
    call.providers.works()
    call.open_breaker("cartesia")
    assert call.choose() == "flux"


@pytest.mark.parametrize("error", [LOST, SttBusyError("full", status=429)])
def test_failing_provider_is_left_after_the_failover_time(
    error: SttTransientError | SttBusyError,
) -> None:
    call = Call()
    call.choose()
    call.providers.failed(error, call.now)
    assert call.choose(inside_turn=True) == "cartesia"
    assert not call.providers.must_move(call.now)
    call.now += FAILOVER_S
    assert call.providers.must_move(call.now)
    assert call.choose(inside_turn=True) == "flux"
    assert call.stats.failovers == {"cartesia": 1, "flux": 0}


def test_next_check_is_at_the_failover_time() -> None:
    call = Call()
    call.choose()
    assert call.providers.next_check_s(call.now) == MOVE_CHECK_S
    call.providers.failed(LOST, call.now)
    assert call.providers.next_check_s(call.now) == MOVE_CHECK_S
    call.now += FAILOVER_S - MOVE_CHECK_S / 4
    assert not call.providers.must_move(call.now)
    call.now += call.providers.next_check_s(call.now)
    assert call.providers.must_move(call.now)
    assert call.providers.next_check_s(call.now) == MOVE_CHECK_S  # no busy waiting after it
    call.now = math.nextafter(call.now, 0.0)
    assert call.providers.next_check_s(call.now) == MIN_WAIT_S  # nor just before it


def test_working_socket_ends_the_failure() -> None:
    call = Call()
    call.choose()
    call.providers.failed(LOST, call.now)
    call.providers.works()
    call.now += FAILOVER_S
    assert call.choose() == "cartesia"


def test_stuck_provider_is_left_at_once() -> None:
    call = Call()
    call.choose()
    call.providers.failed(LOST, call.now, stuck=True)
    assert call.choose(inside_turn=True) == "flux"


def test_new_socket_that_stays_silent_inside_a_turn_is_left() -> None:
    call = Call()
    call.choose()
    call.providers.failed(LOST, call.now)
    call.now += 1
    opened_at = call.now
    call.now += FAILOVER_S - 0.1
    assert not call.check(opened_at, inside_turn=True)
    call.now += 0.1
    assert not call.check(opened_at, inside_turn=False)
    assert call.check(opened_at, inside_turn=True)
    assert call.providers.current.name == "flux"


def test_socket_that_is_left_inside_a_turn_counts_for_the_breaker() -> None:
    call = Call()
    call.choose()
    for number in range(MAX_FAILURES - 2):
        call.breakers.failed("cartesia", f"other-{number}")
    call.providers.failed(LOST, call.now)
    opened_at = call.now
    call.now += FAILOVER_S
    assert call.state("cartesia") is BreakerState.CLOSED
    assert call.check(opened_at, inside_turn=True)
    assert call.state("cartesia") is BreakerState.OPEN
    assert call.state("flux") is BreakerState.CLOSED


def test_probe_that_is_left_inside_a_turn_has_failed() -> None:
    call = Call()
    call.choose()
    call.open_breaker("cartesia")
    call.wait_for_probe()
    call.open_breaker("flux")
    call.providers.failed(LOST, call.now)
    assert call.choose(inside_turn=True) == "cartesia"
    assert call.state("cartesia") is BreakerState.PROBING
    call.breakers.probe_ended("flux", succeeded=True)
    opened_at = call.now
    call.now += FAILOVER_S
    assert call.check(opened_at, inside_turn=True)
    assert call.state("cartesia") is BreakerState.OPEN


def test_working_provider_is_kept_while_its_breaker_is_open() -> None:
    call = Call()
    call.choose()
    call.providers.works()
    call.open_breaker("cartesia")
    assert not call.check(call.now, inside_turn=True)
    assert not call.check(call.now, inside_turn=False)


def test_single_provider_is_never_left() -> None:
    call = Call("cartesia")
    call.choose()
    call.providers.failed(LOST, call.now, stuck=True)
    call.open_breaker("cartesia")
    call.now += 60
    assert call.choose() == "cartesia"
    assert not call.providers.must_move(call.now)
    assert not call.check(call.now)
    assert call.providers.connect_timeout_s(call.now) == float("inf")
    assert call.providers.silence_timeout_s == PING_INTERVAL_S


def test_both_failing_providers_are_tried_in_turn() -> None:
    call = Call()
    seen = []
    for _ in range(4):
        seen.append(call.choose())
        call.providers.failed(LOST, call.now)
        call.now += FAILOVER_S
    assert seen == ["cartesia", "flux", "cartesia", "flux"]


def test_connect_gets_its_full_time_once_all_were_tried() -> None:
    call = Call()
    call.choose()
    assert call.providers.connect_timeout_s(call.now) == FAILOVER_S
    for _ in range(2):
        call.providers.failed(LOST, call.now)
        call.now += FAILOVER_S
        call.choose()
    assert call.providers.connect_timeout_s(call.now) == float("inf")
    call.providers.works()
    assert call.providers.connect_timeout_s(call.now) == FAILOVER_S


def test_session_hurries_only_to_a_working_one_once_all_failed() -> None:
    call = Call()
    call.choose()
    for _ in range(2):
        assert not call.providers.all_failed
        call.providers.failed(LOST, call.now)
        call.now += FAILOVER_S
        assert call.providers.must_move(call.now)
        call.choose()
    assert call.providers.all_failed
    call.providers.failed(LOST, call.now)
    call.now += FAILOVER_S
    for name in ("cartesia", "flux"):
        call.open_breaker(name)
    assert not call.providers.must_move(call.now)
    call.breakers.probe_ended("flux", succeeded=True)
    assert call.providers.must_move(call.now)
    call.providers.works()
    assert not call.providers.all_failed


def test_failover_is_logged_until_all_providers_failed(caplog: pytest.LogCaptureFixture) -> None:
    call = Call()
    for _ in range(6):
        call.choose()
        call.providers.failed(LOST, call.now)
        call.now += FAILOVER_S
    assert len([each for each in caplog.messages if "continues at provider" in each]) == 2
    assert sum(call.stats.failovers.values()) == 5


def test_connect_gets_its_full_time_if_no_other_provider_works() -> None:
    call = Call()
    call.choose()
    call.open_breaker("flux")
    assert call.providers.connect_timeout_s(call.now) == float("inf")


def _at_the_second() -> Call:
    """Return a session that the open breaker of the first provider sent to the second."""
    call = Call()
    call.choose()
    call.open_breaker("cartesia")
    call.providers.failed(LOST, call.now)
    assert call.choose() == "flux"
    call.providers.works()
    return call


def test_session_returns_between_turns_as_the_probe() -> None:
    call = _at_the_second()
    call.now += MIN_STAY_S
    assert not call.check(call.now - 10, inside_turn=True)
    assert call.check(call.now - 10, inside_turn=False)
    assert call.providers.current.name == "cartesia"
    assert call.state("cartesia") is BreakerState.PROBING
    call.providers.works()
    assert call.state("cartesia") is BreakerState.CLOSED
    assert call.stats.failovers == {"cartesia": 1, "flux": 0}


def test_failed_probe_sends_the_session_back_at_once() -> None:
    call = _at_the_second()
    call.now += MIN_STAY_S
    assert call.check(call.now - 10)
    call.providers.failed(LOST, call.now)
    assert call.state("cartesia") is BreakerState.OPEN
    assert call.choose(inside_turn=True) == "flux"


def test_session_does_not_return_while_another_one_probes() -> None:
    call = _at_the_second()
    call.now += MIN_STAY_S
    assert call.breakers.take_probe("cartesia")
    assert not call.check(call.now - 10)


@pytest.mark.parametrize(
    ("names", "broken", "expected"),
    [("cartesia", "", False), ("cartesia flux", "", True), ("cartesia flux", "flux", False)],
)
def test_stuck_turn_is_left_only_for_a_better_provider(
    names: str, broken: str, expected: bool
) -> None:
    call = Call(names)
    call.choose()
    if broken:
        call.open_breaker(broken)
    assert call.providers.can_leave(call.now) is expected
    assert call.choose(inside_turn=True) == "cartesia", "asking moves nothing"


def test_new_session_is_the_probe() -> None:
    call = Call()
    call.open_breaker("cartesia")
    call.wait_for_probe()
    assert call.choose() == "cartesia"
    assert call.state("cartesia") is BreakerState.PROBING
    call.providers.works()
    assert call.state("cartesia") is BreakerState.CLOSED


def test_provider_that_rejects_the_session_is_left_for_good() -> None:
    call = Call()
    call.choose()
    error = SttPermanentError("HTTP 400", status=400)
    assert call.providers.give_up(error, call.now)
    assert call.providers.current.name == "flux"
    assert not call.providers.several
    assert not call.providers.give_up(error, call.now)
    assert call.state("cartesia") is BreakerState.CLOSED


def test_one_session_opens_no_breaker() -> None:
    call = Call()
    call.choose()
    for _ in range(10 * MAX_FAILURES):
        call.providers.failed(LOST, call.now)
    assert call.state("cartesia") is BreakerState.CLOSED


def test_silence_timeout_is_the_failover_time() -> None:
    assert Call().providers.silence_timeout_s == FAILOVER_S
