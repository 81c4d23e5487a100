"""Turn detection from probabilities alone."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.local.emulator.engines.base import TurnSettings
from worker.local.emulator.engines.speech_audio import WINDOW_S
from worker.local.emulator.engines.speech_turns import TurnDetector

DEFAULTS = TurnSettings()
SPEECH, UNSURE, SILENCE = 0.9, 0.4, 0.05

# Steps that may follow each step; None is the state before the first.
NEXT = {
    None: {"turn.start"},
    "turn.start": {"turn.eager_end", "turn.end"},
    "turn.eager_end": {"turn.resume", "turn.end"},
    "turn.resume": {"turn.eager_end", "turn.end"},
    "turn.end": {"turn.start"},
}


def steps(detector: TurnDetector, probabilities: list[float]) -> list[tuple[int, str]]:
    """Give each step with the number of windows heard by then."""
    heard = ((at, detector.update(p)) for at, p in enumerate(probabilities, 1))
    return [(at, step) for at, step in heard if step]


def speaking(settings: TurnSettings = DEFAULTS) -> TurnDetector:
    detector = TurnDetector(settings)
    assert [step for _, step in steps(detector, [SPEECH] * 20)] == ["turn.start"]
    return detector


def silence_until(step: str, settings: TurnSettings) -> float:
    """Return after how many seconds of silence that step occurs."""
    windows = {kind: at for at, kind in steps(speaking(settings), [SILENCE] * 1000)}
    return windows[step] * WINDOW_S


def test_complete_turn_with_defaults() -> None:
    story = [SILENCE] * 9 + [SPEECH] * 20 + [SILENCE] * 15 + [SPEECH] * 5 + [SILENCE] * 60
    assert steps(TurnDetector(DEFAULTS), story) == [
        (11, "turn.start"),  # at the second window of speech
        (29 + 11, "turn.eager_end"),  # after 0.35 s
        (44 + 2, "turn.resume"),  # at the second window again
        (49 + 11, "turn.eager_end"),
        (49 + 25, "turn.end"),  # after 0.8 s
    ]


@pytest.mark.parametrize(
    "story",
    [
        [SILENCE] * 1000,
        [UNSURE] * 1000,
        [SPEECH, SILENCE] * 500,  # clicks do not add up
        [SPEECH, UNSURE] * 500,
    ],
)
def test_clicks_start_no_turn(story: list[float]) -> None:
    assert steps(TurnDetector(DEFAULTS), story) == []


def test_higher_start_threshold_needs_more_speech() -> None:
    first = [
        steps(TurnDetector(TurnSettings(start=start)), [SPEECH] * 20)[0][0]
        for start in (0.5, 0.7, 0.8, 0.9)
    ]
    assert first == [1, 2, 2, 3]


@pytest.mark.parametrize(
    ("step", "settings", "seconds"),
    [
        ("turn.eager_end", TurnSettings(eager_end=0.8), 0.16),
        ("turn.eager_end", TurnSettings(eager_end=0.6), 0.35),
        ("turn.eager_end", TurnSettings(eager_end=0.4), 0.61),
        ("turn.end", TurnSettings(end=0.5), 0.48),
        ("turn.end", TurnSettings(end=0.3), 0.80),
        ("turn.end", TurnSettings(end=0.2), 1.06),
        ("turn.end", TurnSettings(end=0.1), 1.50),
        ("turn.end", TurnSettings(end=0.05), 1.95),
    ],
)
def test_lower_end_threshold_needs_more_silence(
    step: str, settings: TurnSettings, seconds: float
) -> None:
    assert silence_until(step, settings) == pytest.approx(seconds, abs=WINDOW_S)


@given(st.floats(0.05, 0.5), st.floats(0.05, 0.5))
def test_end_delay_is_monotonic_in_threshold(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert silence_until("turn.end", TurnSettings(end=low)) >= silence_until(
        "turn.end", TurnSettings(end=high)
    )


def test_end_timeout_limits_wait() -> None:
    assert silence_until("turn.end", TurnSettings(end_timeout_ms=640)) == pytest.approx(0.64)
    # The timeout also runs where the likelihood does not fall, because the windows are not clearly
    # silent.
    observed = steps(speaking(TurnSettings(end_timeout_ms=1600)), [UNSURE] * 100)
    assert observed == [(50, "turn.end")]


def test_end_timeout_can_precede_eager_end() -> None:
    settings = TurnSettings(eager_end=0.3, end=0.1, end_timeout_ms=640)
    assert [step for _, step in steps(speaking(settings), [SILENCE] * 100)] == ["turn.end"]


def test_settings_can_change_within_turn() -> None:
    detector = speaking()
    assert steps(detector, [SILENCE] * 15) == [(11, "turn.eager_end")]
    detector.settings = TurnSettings(start=0.9, eager_end=0.6, end=0.5)
    assert steps(detector, [SILENCE]) == [(1, "turn.end")]


def test_end_of_audio_ends_turn() -> None:
    detector = speaking()
    assert detector.end() == "turn.end"
    assert detector.end() is None
    assert not detector.in_turn
    assert TurnDetector(DEFAULTS).end() is None


@given(st.lists(st.sampled_from([SPEECH, UNSURE, SILENCE]), max_size=300), st.floats(0.5, 0.9))
def test_steps_follow_protocol_order(story: list[float], start: float) -> None:
    detector = TurnDetector(TurnSettings(start=start))
    observed: list[str | None] = [None]
    for probability in story:
        step = detector.update(probability)
        assert 0 <= detector.likelihood <= 1
        if step:
            observed.append(step)
        assert detector.in_turn == (observed[-1] not in (None, "turn.end"))
    assert all(after in NEXT[before] for before, after in pairwise(observed))
