"""When a socket is dead, a turn is stuck, or a provider fails repeatedly at the same audio."""

from dataclasses import dataclass, field

import pytest

from worker.core.connection_health import (
    MARGIN_MS,
    MAX_CERTAIN_LOSSES,
    MAX_LOSSES,
    MAX_SILENT_MS,
    MAX_TIMEOUT_MS,
    MIN_LOSING_S,
    MIN_PUNCTUAL_MS,
    Keepalive,
    RepeatedLosses,
    SilentSocket,
    Watchdog,
    WatchdogAction,
)


@dataclass
class Line:
    """The socket as the keepalive sees it."""

    pongs_received: int = 0
    last_received_at: float = 0.0
    blocked_since: float | None = None
    pings: list[int] = field(default_factory=list)
    aborted: str = ""

    def send_ping(self, number: int) -> None:
        self.pings.append(number)

    def abort(self, reason: str) -> None:
        self.aborted = reason


def _beat(
    keepalive: Keepalive, line: Line, now: float, fed: int, every_s: float = 5.0
) -> int | None:
    return keepalive.check(line, now, fed, every_s)


def test_keepalive_reports_received_audio_once() -> None:
    keepalive, line = Keepalive(0.0), Line()
    assert _beat(keepalive, line, 4.9, 100) is None
    assert line.pings == []
    _beat(keepalive, line, 5.0, 200)
    assert line.pings == [1]
    assert _beat(keepalive, line, 5.1, 300) is None, "not answered yet"
    line.pongs_received = 1
    assert _beat(keepalive, line, 5.2, 400) == 200, "what was sent before the ping"
    assert _beat(keepalive, line, 5.3, 500) is None, "reported once"
    _beat(keepalive, line, 10.0, 600)
    assert line.pings == [1, 2]


def test_keepalive_pings_at_interval() -> None:
    keepalive, line = Keepalive(0.0), Line()
    _beat(keepalive, line, 2.5, 0, 2.5)
    line.pongs_received = 1
    _beat(keepalive, line, 2.6, 0, 2.5)
    _beat(keepalive, line, 5.0, 0, 5.0)
    assert line.pings == [1]
    _beat(keepalive, line, 5.0, 0, 2.5)
    assert line.pings == [1, 2]


def test_late_pong_confirms_no_audio() -> None:
    keepalive, line = Keepalive(0.0), Line()
    _beat(keepalive, line, 5.0, 200)
    line.pongs_received = 1
    assert _beat(keepalive, line, 6.5, 400) is None
    assert not line.aborted


def test_silent_peer_is_aborted() -> None:
    keepalive, line = Keepalive(0.0), Line()
    _beat(keepalive, line, 5.0, 0)
    _beat(keepalive, line, 10.0, 0)
    assert not line.aborted
    _beat(keepalive, line, 10.1, 0)
    assert "ping" in line.aborted


def test_any_message_of_peer_keeps_socket() -> None:
    keepalive, line = Keepalive(0.0), Line()
    _beat(keepalive, line, 5.0, 0)
    line.last_received_at = 9.0
    _beat(keepalive, line, 13.9, 0)
    assert not line.aborted
    _beat(keepalive, line, 14.1, 0)
    assert line.aborted


def test_peer_that_reads_nothing_is_aborted() -> None:
    keepalive, line = Keepalive(0.0), Line(blocked_since=1.0)
    _beat(keepalive, line, 5.9, 0)
    assert not line.aborted
    _beat(keepalive, line, 6.1, 0)
    assert "no audio" in line.aborted


@pytest.mark.parametrize("timeout_ms", [None, 640.0, 5_600.0])
def test_watchdog_replays_first_then_ends_turn(timeout_ms: float | None) -> None:
    patience = (timeout_ms or MAX_TIMEOUT_MS) + MARGIN_MS
    dog = Watchdog()
    assert dog.check(3, patience, timeout_ms) is WatchdogAction.NONE
    assert dog.check(3, patience + 1, timeout_ms) is WatchdogAction.REPLAY
    dog.restart()
    assert dog.check(3, patience, timeout_ms) is WatchdogAction.NONE
    assert dog.check(3, patience + 1, timeout_ms) is WatchdogAction.END


def test_any_provider_message_resets_watchdog() -> None:
    dog = Watchdog()
    for sent_ms in range(0, 100_000, 5_000):
        dog.on_message(sent_ms)
        assert dog.check(0, sent_ms + 5_000, 640.0) is WatchdogAction.NONE


def test_watchdog_replays_once_per_turn() -> None:
    dog = Watchdog()
    assert dog.check(0, 50_000, 640.0) is WatchdogAction.REPLAY
    dog.restart()
    assert dog.check(1, 50_000, 640.0) is WatchdogAction.REPLAY


Loss = tuple[int, object, float, bool]
"""Position, progress, time, and whether it is certainly the provider's fault."""


def _verdicts(losses: list[Loss]) -> list[bool]:
    repeats = RepeatedLosses(near=10)
    return [
        repeats.must_skip(place, progress, now, certain=certain)
        for place, progress, now, certain in losses
    ]


@pytest.mark.parametrize(
    ("losses", "last"),
    [
        ([(100, 0, float(n), True) for n in range(MAX_CERTAIN_LOSSES)], True),
        ([(100, 0, float(n), True) for n in range(MAX_CERTAIN_LOSSES - 1)], False),
        ([(100 + n % 2 * 10, 0, float(n), True) for n in range(MAX_CERTAIN_LOSSES)], True),
        ([(100, n, float(n), True) for n in range(20)], False),  # progress
        ([(100 * n, 0, float(n), True) for n in range(20)], False),  # further each time
        ([(100, 0, float(n), False) for n in range(20)], False),  # an outage so far
        ([(100, 0, n * MIN_LOSING_S, False) for n in range(MAX_LOSSES)], True),
        ([(100, 0, n * MIN_LOSING_S, False) for n in range(MAX_LOSSES - 1)], False),
        ([(100 - n % 2 * 50, 0, n * MIN_LOSING_S, False) for n in range(MAX_LOSSES)], False),
        ([(100 - n % 2 * 50, 0, n * MIN_LOSING_S, False) for n in range(2 * MAX_LOSSES - 1)], True),
    ],
)
def test_verdict_on_repeated_failures(losses: list[Loss], *, last: bool) -> None:
    *before, verdict = _verdicts(losses)
    assert (any(before), verdict) == (False, last)


def _found_silent(times: int) -> SilentSocket:
    silence = SilentSocket()
    for _ in range(times):
        silence.restart(2_000.0)
        assert silence.check(1e9)
    silence.restart(2_000.0)
    return silence


def test_silent_socket_gets_more_audio_after_each_silent_one() -> None:
    silence = SilentSocket()
    silence.restart(2_000.0)
    assert not silence.check(2_000.0)
    assert silence.check(2_001.0)
    silence.restart(2_000.0)
    assert not silence.check(4_000.0)
    assert silence.check(4_001.0)
    assert not _found_silent(9).check(MAX_SILENT_MS)


@pytest.mark.parametrize(
    ("silent_ms", "inside_turn", "allowed_ms"),
    [(250.0, False, 2_000.0), (250.0, True, 8_000.0), (2_001.0, False, 8_000.0)],
)
def test_provider_that_is_on_time_gets_its_usual_limit_again(
    silent_ms: float, *, inside_turn: bool, allowed_ms: float
) -> None:
    silence = _found_silent(2)
    silence.on_message(2_500.0, 2_500.0, inside_turn=False)  # a late first message
    for n in range(20):
        sent_ms = 2_500.0 + n * MIN_PUNCTUAL_MS / 10
        silence.on_message(silent_ms, sent_ms, inside_turn=inside_turn)
    assert not silence.check(allowed_ms)
    assert silence.check(allowed_ms + 1)


def test_first_message_of_a_late_provider_keeps_the_limit() -> None:
    """Otherwise each second socket of a provider in bursts is dropped, and nothing is committed."""
    silence = _found_silent(1)
    silence.on_message(250.0, 250.0, inside_turn=False)
    silence.on_message(2_500.0, 2_750.0, inside_turn=False)
    assert not silence.check(4_000.0)


def test_limit_of_a_late_provider_survives_another_provider() -> None:
    silence = _found_silent(1)
    silence.restart(0.0)
    silence.on_message(0.0, 1e6, inside_turn=False)
    silence.restart(2_000.0)
    assert not silence.check(4_000.0)


def test_provider_that_may_be_silent_is_never_stuck() -> None:
    silence = SilentSocket()
    silence.restart(2_000.0)
    silence.restart(0.0)
    assert not silence.check(1e9)
