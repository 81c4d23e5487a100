"""Update throttling: what a turn costs, and the maximum delay of a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.transcripts import MAX_UPDATE_INTERVAL_S, UpdateThrottle


def _published(interval_ms: float, texts: list[str], every_s: float) -> list[str]:
    """Return which texts are published when they arrive at this interval."""
    holdback = UpdateThrottle(interval_ms)
    published = []
    for at, text in enumerate(texts):
        if holdback.is_due(at * every_s):
            holdback.published(text, at * every_s)
            published.append(text)
    return published


def _turn(seconds: int, every_s: float) -> list[str]:
    """Return the texts of a turn: each update adds a word of five letters and a space."""
    return ["words " * count for count in range(1, int(seconds / every_s) + 1)]


def test_short_turn_is_published_completely() -> None:
    texts = _turn(10, 0.3)
    assert _published(500, texts, 0.3) == texts


@pytest.mark.parametrize("every_s", [0.05, 0.2, 0.4])
def test_long_turn_costs_a_bounded_number_of_bytes(every_s: float) -> None:
    texts = _turn(600, every_s)
    published = _published(500, texts, every_s)
    before, after = sum(map(len, texts)), sum(map(len, published))
    # 2 kB a second, and the text's own length each MAX_UPDATE_INTERVAL_S beyond 10,000 characters.
    assert after <= 2_000 * 600 + len(texts[-1]) * 600 / MAX_UPDATE_INTERVAL_S
    assert after < before / 4


def test_zero_interval_publishes_every_text() -> None:
    texts = _turn(60, 0.05)
    assert _published(0, texts, 0.05) == texts


@given(text=st.text(), long=st.integers(0, 100_000), interval_ms=st.integers(0, 60_000))
def test_text_waits_no_longer_than_limit(text: str, long: int, interval_ms: int) -> None:
    holdback = UpdateThrottle(interval_ms)
    assert holdback.is_due(0.0)
    holdback.published(text * long if long < 1_000 else "x" * long, 10.0)
    assert holdback.is_due(10.0 + MAX_UPDATE_INTERVAL_S)
    holdback.reset()
    assert holdback.is_due(10.0)
