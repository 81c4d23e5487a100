"""What the word checker reports about a session's events."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import turns
from worker.bench.words import Differences, WordChecker, WordResult, compare


@pytest.mark.parametrize(
    ("checked", "differences", "text"),
    [
        ([0, 1, 2, 3], Differences([], [], [], []), ""),
        ([], Differences([0, 1, 2, 3], [], [], []), "lost 0 1 2 3"),
        ([0, 1, 3], Differences([2], [], [], []), "lost 2"),
        ([0, 1, 1, 2, 3], Differences([], [1], [], []), "repeated 1"),
        ([0, 1, 2, 3, 0, 1], Differences([], [0, 1], [], []), "repeated 0 1"),
        ([0, 1, "!2", 3], Differences([2], [], ["!2"], []), "lost 2; wrong !2"),
        ([0, 1, 2, 3, 4], Differences([], [], [4], []), "wrong 4"),
        ([0, 2, 1, 3], Differences([], [], [], [(2, 1)]), "wrong 1"),
    ],
)
def test_compare_counts_differences(
    checked: list[int | str], differences: Differences, text: str
) -> None:
    assert compare(4, checked) == differences
    assert str(differences) == text


@given(st.integers(0, 40), st.lists(st.integers(0, 50) | st.just("!?"), max_size=60))
def test_compare_accepts_only_spoken_words(turn_of: int, checked: list[int | str]) -> None:
    assert any(compare(turn_of, checked)) == (checked != list(range(turn_of)))


COMMON: dict[str, Any] = {
    "session": "s",
    "run": "1-0",
    "at": 0.0,
    "audio_ms": 0,
    "provider": "cartesia",
    "request_id": "",
    "connection": 1,
}


def checked(*events: tuple[type, dict[str, Any]], skip: int = 0) -> WordChecker:
    """Check events, the nth of them appended at n * 10 ms; `skip` leaves a gap in `seq`."""
    checker = WordChecker()
    for number, (kind, fields) in enumerate(events, 1):
        seq = number + (skip if number > 1 else 0)
        checker.add(kind(seq=seq, **COMMON, **fields), number * 10)
    return checker


def turn_of(text: str, turn: int = 0) -> list[tuple[type, dict[str, Any]]]:
    """Return a turn that grows by a word at a time."""
    words = text.split(" ")
    grown = [" ".join(words[: n + 1]) for n in range(len(words))]
    return [
        (turns.TurnStart, {"turn": turn}),
        *((turns.TurnUpdate, {"turn": turn, "transcript": part}) for part in grown if part),
        (turns.TurnEagerEnd, {"turn": turn, "transcript": text}),
        (turns.TurnEnd, {"turn": turn, "transcript": text, "reason": "model"}),
    ]


END: tuple[type, dict[str, Any]] = (turns.SessionEnded, {"reason": "end", "turns": 2})


def test_interrupted_words_may_be_lost_or_damaged() -> None:
    torn = checked(*turn_of("w0 !1 !1 !? w4"), END)
    assert torn.result(5, {1, 2}) == WordResult(words=5, lost=1, torn=2)
    assert torn.failures(5, {1, 2}) == "lost 3"
    assert torn.result(5, {1, 2, 3}).ok
    assert torn.result(5).wrong == 3
    assert checked(*turn_of("w0 w1 w1"), END).result(2, {1}).repeated == 1


def test_checker_accepts_correct_session() -> None:
    checker = checked(*turn_of("w0 w1"), *turn_of(" w2 w3", 1), END)
    assert checker.ended
    assert checker.result(4) == WordResult(words=4)
    assert checker.result(4).ok
    assert checker.failures(4) == ""
    assert checker.updated_ms == {0: 20, 1: 30, 2: 70, 3: 80}


def test_checker_measures_first_appearance_of_word() -> None:
    update = (turns.TurnUpdate, {"turn": 0, "transcript": "w0"})
    checker = checked((turns.TurnStart, {"turn": 0}), update, update)
    assert checker.updated_ms == {0: 20}


@pytest.mark.parametrize(
    ("checker", "verdict"),
    [
        (checked(*turn_of("w0 w1")), WordResult(words=2, unended=1)),
        (checked(*turn_of("w0"), END), WordResult(words=2, lost=1)),
        (checked(*turn_of("w0 w1 w1"), END), WordResult(words=2, repeated=1)),
        (checked(*turn_of("w0 w1"), END, skip=1), WordResult(words=2, seq_faults=1)),
        (
            checked(
                *turn_of("w0 w1"), (turns.AudioGap, {"missing_ms": 1, "reason": "producer"}), END
            ),
            WordResult(words=2, faults=1),
        ),
    ],
)
def test_checker_counts_faults(checker: WordChecker, verdict: WordResult) -> None:
    assert checker.result(2) == verdict
    assert not verdict.ok


def test_checker_describes_failures() -> None:
    checker = checked(*turn_of("w0 w0 !2"), skip=1)
    assert checker.failures(2) == "lost 1; repeated 0; wrong !2; seq faults 1; not ended"


def test_word_results_add_up() -> None:
    both = WordResult(words=2, lost=1) + WordResult(words=3, lost=2, unended=1)
    assert both == WordResult(words=5, lost=3, unended=1)
