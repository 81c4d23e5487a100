"""The watchdog as a table of milliseconds of audio."""

import pytest

from worker.core.watchdog import LONGEST_TIMEOUT_MS, MARGIN_MS, Bark, Watchdog


@pytest.mark.parametrize("timeout_ms", [None, 640.0, 5_600.0])
def test_first_a_replay_then_the_end(timeout_ms: float | None) -> None:
    patience = (timeout_ms or LONGEST_TIMEOUT_MS) + MARGIN_MS
    dog = Watchdog()
    assert dog.look(3, patience, timeout_ms) is Bark.NO
    assert dog.look(3, patience + 1, timeout_ms) is Bark.REPLAY
    dog.restart()
    assert dog.look(3, patience, timeout_ms) is Bark.NO
    assert dog.look(3, patience + 1, timeout_ms) is Bark.END


def test_every_word_of_the_service_counts() -> None:
    dog = Watchdog()
    for sent_ms in range(0, 100_000, 5_000):
        dog.said(sent_ms)
        assert dog.look(0, sent_ms + 5_000, 640.0) is Bark.NO


def test_each_turn_has_its_own_second_chance() -> None:
    dog = Watchdog()
    assert dog.look(0, 50_000, 640.0) is Bark.REPLAY
    dog.restart()
    assert dog.look(1, 50_000, 640.0) is Bark.REPLAY
