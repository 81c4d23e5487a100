"""The watchdog as a table of milliseconds of audio."""

import pytest

from worker.core.watchdog import MARGIN_MS, MAX_TIMEOUT_MS, Watchdog, WatchdogAction


@pytest.mark.parametrize("timeout_ms", [None, 640.0, 5_600.0])
def test_first_a_replay_then_the_end(timeout_ms: float | None) -> None:
    patience = (timeout_ms or MAX_TIMEOUT_MS) + MARGIN_MS
    dog = Watchdog()
    assert dog.check(3, patience, timeout_ms) is WatchdogAction.NONE
    assert dog.check(3, patience + 1, timeout_ms) is WatchdogAction.REPLAY
    dog.restart()
    assert dog.check(3, patience, timeout_ms) is WatchdogAction.NONE
    assert dog.check(3, patience + 1, timeout_ms) is WatchdogAction.END


def test_every_word_of_the_service_counts() -> None:
    dog = Watchdog()
    for sent_ms in range(0, 100_000, 5_000):
        dog.on_message(sent_ms)
        assert dog.check(0, sent_ms + 5_000, 640.0) is WatchdogAction.NONE


def test_each_turn_has_its_own_second_chance() -> None:
    dog = Watchdog()
    assert dog.check(0, 50_000, 640.0) is WatchdogAction.REPLAY
    dog.restart()
    assert dog.check(1, 50_000, 640.0) is WatchdogAction.REPLAY
