"""Where a turn with times ends, and when the command that ends it is sent."""

import pytest

from worker.core.turn_ending import (
    MAX_ANSWER_MS,
    MAX_TAIL_MS,
    SETTLE_MS,
    Step,
    TurnEnding,
    turn_cut_ms,
)

SENT_MS = 1_000.0
ENOUGH_MS = SENT_MS + SETTLE_MS


@pytest.mark.parametrize(
    ("last_word_ms", "transcribed_ms", "cut_ms"),
    [
        (None, 900.0, 900.0),
        (500.0, 500.0, 500.0),
        (500.0, 560.0, 530.0),
        (500.0, 5_000.0, 500.0 + MAX_TAIL_MS),
        (500.0, 400.0, 500.0),  # a window that lags behind its words
    ],
)
def test_turn_ends_after_its_last_word(
    last_word_ms: float | None, transcribed_ms: float, cut_ms: float
) -> None:
    assert turn_cut_ms(last_word_ms, transcribed_ms) == cut_ms


def advance(
    ending: TurnEnding, transcribed_ms: float | None, *, in_turn: bool, answered: bool = False
) -> Step:
    return ending.advance(transcribed_ms, ENOUGH_MS + 500, in_turn=in_turn, answered=answered)


def test_command_is_sent_once_all_audio_is_transcribed() -> None:
    ending = TurnEnding(SENT_MS, with_command=True)
    assert advance(ending, None, in_turn=True) is Step.WAIT
    assert advance(ending, ENOUGH_MS - 1, in_turn=True) is Step.WAIT
    assert advance(ending, ENOUGH_MS, in_turn=True) is Step.COMMAND
    assert advance(ending, ENOUGH_MS + 250, in_turn=True) is Step.WAIT
    assert advance(ending, None, in_turn=True, answered=True) is Step.DONE


def test_command_is_unanswered_once_later_audio_is_transcribed() -> None:
    ending = TurnEnding(SENT_MS, with_command=True)
    assert advance(ending, ENOUGH_MS, in_turn=True) is Step.COMMAND
    overdue_ms = ENOUGH_MS + 500 + MAX_ANSWER_MS
    assert advance(ending, overdue_ms - 1, in_turn=True) is Step.WAIT
    assert advance(ending, None, in_turn=True) is Step.WAIT
    assert advance(ending, overdue_ms, in_turn=True) is Step.UNANSWERED


def test_late_answer_to_the_command_counts() -> None:
    ending = TurnEnding(SENT_MS, with_command=True)
    assert advance(ending, ENOUGH_MS, in_turn=True) is Step.COMMAND
    assert advance(ending, 10 * MAX_ANSWER_MS, in_turn=False, answered=True) is Step.DONE


def test_turn_that_ends_early_needs_the_rest_transcribed() -> None:
    ending = TurnEnding(SENT_MS, with_command=True)
    assert advance(ending, SENT_MS - 500, in_turn=False, answered=True) is Step.WAIT
    assert advance(ending, ENOUGH_MS, in_turn=False) is Step.DONE


def test_turn_is_not_commanded_where_no_command_is_known() -> None:
    ending = TurnEnding(SENT_MS, with_command=False)
    assert advance(ending, ENOUGH_MS, in_turn=True) is Step.DONE
