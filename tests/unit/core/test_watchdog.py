"""The watchdog as a table of milliseconds of audio."""

import pytest

from worker.core.watchdog import MARGIN_MS, MAX_TIMEOUT_MS, Watchdog, WatchdogAction


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
