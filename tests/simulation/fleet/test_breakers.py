"""The history of a breaker accepts what its rules allow, and finds every other exchange."""

from collections.abc import Sequence

import pytest

from tests.simulation.fleet.breakers import BreakerHistory
from tests.simulation.fleet.history import ScriptRun
from worker.bus import scripts
from worker.bus.breaker import EXPIRY_S


def exchange(
    at_s: float,
    state: str,
    *sessions: str,
    granted: int = 0,
    holder: str = "a",
    succeeded: int = 0,
    probe: str = "",
    wants_probe: int = 0,
) -> ScriptRun:
    values = {
        "holder": holder,
        "succeeded": str(succeeded),
        "probe": probe,
        "wants_probe": str(wants_probe),
    }
    args = [values.get(name, "").encode() for name in scripts.exchange_breaker.args]
    args += [session.encode() for session in sessions]
    keys = (b"stt:breaker:{flux}",)
    return ScriptRun(at_s, "exchange_breaker", keys, args, [state.encode(), granted])


def findings(*runs: ScriptRun) -> Sequence[str]:
    history = BreakerHistory()
    for run in runs:
        history.add(run)
    return [str(each) for each in history.findings]


OPENED = (exchange(1, "closed", "s", "s", "s"), exchange(2, "open", "t", "t"))


def test_breaker_opens_is_probed_and_closes() -> None:
    assert not findings(
        *OPENED,
        exchange(4, "open", wants_probe=1),
        exchange(5, "probing", wants_probe=1, granted=1),
        exchange(6, "probing", holder="b", wants_probe=1),
        exchange(7, "open", probe="failed"),
        exchange(12, "probing", holder="b", wants_probe=1, granted=1),
        exchange(13, "closed", holder="b", probe="ok"),
        exchange(14, "closed", "s"),
    )


def test_failures_that_do_not_count() -> None:
    assert not findings(exchange(1, "closed", *"sssssss"))
    assert not findings(exchange(1, "closed", *"sstt"), exchange(12, "closed", "u"))
    assert not findings(exchange(1, "closed", *"sstt"), exchange(2, "closed", "u", succeeded=1))


def test_probe_without_a_result_counts_as_gone() -> None:
    granted = exchange(5, "probing", wants_probe=1, granted=1)
    assert not findings(*OPENED, granted, exchange(21, "probing", holder="b", granted=1))


def test_holder_of_a_gone_probe_may_get_the_next_one() -> None:
    granted = [exchange(at_s, "probing", wants_probe=1, granted=1) for at_s in (5, 21)]
    second = exchange(30, "probing", holder="b", granted=1)
    assert len(findings(*OPENED, *granted, second)) == 1


def test_breaker_that_is_not_probed_is_closed_after_its_expiry() -> None:
    late = 2 + EXPIRY_S
    assert not findings(*OPENED, exchange(late, "closed"), exchange(late + 1, "closed", "s"))
    assert not findings(*OPENED, exchange(late, "open", *"sstuv"))
    assert len(findings(*OPENED, exchange(late - 1, "closed"))) == 1
    assert len(findings(*OPENED, exchange(late + 1, "open"))) == 1


@pytest.mark.parametrize(
    "run",
    [
        exchange(3, "closed"),
        exchange(3, "open", probe="ok"),
        exchange(60, "open", wants_probe=1),
    ],
)
def test_wrong_state_of_an_open_breaker_is_found(run: ScriptRun) -> None:
    assert len(findings(*OPENED, run)) == 1


def test_breaker_that_does_not_open_is_found() -> None:
    assert len(findings(exchange(1, "closed", *"sstt"), exchange(2, "closed", "u"))) == 1


def test_breaker_that_opens_without_failures_is_found() -> None:
    assert len(findings(exchange(1, "open", *"sstt"))) == 1


def test_second_probe_is_found() -> None:
    granted = exchange(5, "probing", wants_probe=1, granted=1)
    assert len(findings(*OPENED, granted, exchange(6, "probing", holder="b", granted=1))) == 1


def test_forgotten_history_begins_anew() -> None:
    history = BreakerHistory()
    for run in OPENED:
        history.add(run)
    history.forget()
    history.add(exchange(3, "closed"))
    history.add(exchange(4, "closed", "s"))
    assert history.findings == []
    assert history.openings == 1


def test_failures_of_a_forgotten_history_may_still_count() -> None:
    history = BreakerHistory()
    history.add(exchange(1, "closed", "s", "s", "s"))
    history.forget()
    history.add(exchange(3, "closed"))
    history.add(exchange(4, "open", "t", "t"))
    assert history.findings == []
    history.add(exchange(5, "closed", probe="ok"))
    history.add(exchange(14, "open", "s", "s"))
    assert len(history.findings) == 1


def test_breaker_of_a_forgotten_history_may_expire_at_any_time() -> None:
    history = BreakerHistory()
    for run in OPENED:
        history.add(run)
    history.forget()
    history.add(exchange(590, "open"))
    history.add(exchange(602, "closed"))
    assert history.findings == []


def test_probe_of_a_forgotten_history_may_end_at_any_time() -> None:
    history = BreakerHistory()
    for run in OPENED:
        history.add(run)
    history.forget()
    history.add(exchange(20, "probing", holder="b"))
    history.add(exchange(21, "probing", granted=1))
    history.add(exchange(33, "open"))
    history.add(exchange(34, "probing", holder="b", wants_probe=1, granted=1))
    assert history.findings == []
    history.add(exchange(35, "probing", wants_probe=1, granted=1))
    assert len(history.findings) == 1
