"""Whole simulated sessions, by the hundred: each word is transcribed once, whatever is lost."""

import pytest

from tests.simulation.calls import Stall
from tests.simulation.lives import Habits, Life

LAGS_S = [(0.0, 0.3), (0.3, 0.6), (0.8, 1.0)]


def _wrong(
    lag_s: tuple[float, float], stall: Stall, lives: int, update_interval_ms: int = 500
) -> list[Habits]:
    """Return the sessions in which a word was lost, repeated, or out of order."""
    wrong = []
    for seed in range(lives):
        for words_at_most in (6, 30):
            habits = Habits(seed, lag_s, 3 + seed % 7, stall, words_at_most)
            life = Life(habits, update_interval_ms)
            if life.live() != [f"w{number}" for number in range(len(life.words))]:
                wrong.append(habits)
    return wrong


@pytest.mark.parametrize("lag_s", LAGS_S)
def test_repeatedly_lost_sockets_lose_no_word(lag_s: tuple[float, float]) -> None:
    assert not _wrong(lag_s, Stall.NONE, 20)


@pytest.mark.parametrize("update_interval_ms", [0, 60_000])
def test_updates_held_back_lose_no_word(update_interval_ms: int) -> None:
    assert not _wrong((0.0, 0.3), Stall.NONE, 20, update_interval_ms)


@pytest.mark.parametrize("stall", [Stall.DOWN, Stall.UP, Stall.BOTH, Stall.WORKER])
def test_lost_sockets_and_a_stall_lose_hardly_any_word(stall: Stall) -> None:
    """Stalls last up to two seconds, beyond the guarantee: one session in forty may fail."""
    assert len(_wrong((0.0, 0.3), stall, 20)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("lag_s", LAGS_S)
def test_thousands_of_lost_sockets_lose_hardly_any_word(lag_s: tuple[float, float]) -> None:
    """One message in thirty arrives later than the others, by up to a second or two."""
    assert len(_wrong(lag_s, Stall.NONE, 300)) <= 1
