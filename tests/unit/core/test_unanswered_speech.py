"""When audio is speech, and when a socket without an answer to it is replaced."""

import pytest

from worker.core.unanswered_speech import (
    MAX_WINDOWS,
    WINDOW_MS,
    UnansweredSpeech,
    UnansweredTurn,
    is_speech,
)

LOUD, QUIET = b"\x00", b"\x01"
SPEECH = (LOUD * 30 + QUIET * 20) * 5
SILENCE = QUIET * 250


@pytest.mark.parametrize(
    ("silent", "expected"),
    [
        (SPEECH, True),
        (b"", False),
        (SILENCE, False),
        (LOUD * 250, False),  # a hum above the noise
        (QUIET * 100 + LOUD * 100 + QUIET * 50, False),  # one sound
        ((LOUD * 5 + QUIET * 45) * 5, False),  # clicks
        ((LOUD * 49 + QUIET) * 5, False),  # music
    ],
)
def test_speech_alternates_between_sound_and_silence(silent: bytes, expected: bool) -> None:
    assert is_speech(silent) is expected


def test_socket_without_an_answer_to_speech_is_replaced_once() -> None:
    speech = UnansweredSpeech()
    for _ in range(MAX_WINDOWS - 1):
        assert speech.observe(SPEECH)
        assert not speech.is_fault
    assert speech.observe(SPEECH)
    assert speech.is_fault
    speech.restart()
    for _ in range(2 * MAX_WINDOWS):
        assert not speech.observe(SPEECH), "it may be a noise"
        assert not speech.is_fault
    speech.on_turn_event()
    assert speech.observe(SPEECH)


@pytest.mark.parametrize("event", ["silence", "event", "socket"])
def test_pause_or_an_event_starts_the_count_again(event: str) -> None:
    speech = UnansweredSpeech()
    for _ in range(MAX_WINDOWS - 1):
        speech.observe(SPEECH)
    if event == "silence":
        assert not speech.observe(SILENCE)
    elif event == "event":
        speech.on_turn_event()
    else:
        speech.restart()
    speech.observe(SPEECH)
    assert not speech.is_fault


class Turn:
    """An open turn, in which the provider sends nothing any more."""

    def __init__(self, failover_s: float = 2.0) -> None:
        self.unanswered = UnansweredTurn(failover_s)
        self.now = self.sent_ms = self.message_ms = 0.0
        self.number = 0

    def play(self, seconds: float, silent: bytes = SPEECH, *, speed: float = 1.0) -> float | None:
        """Send audio; return after how many seconds the provider is found stuck, if it is."""
        for tick in range(1, round(10 * seconds) + 1):
            self.now += 0.1
            self.sent_ms += 100 * speed
            due_ms = self.unanswered.window_due(self.now, self.message_ms, self.sent_ms)
            if due_ms:
                self.unanswered.observe(silent, 100)
            if self.unanswered.is_stuck(self.number):
                return tick / 10
        return None

    def answer(self) -> None:
        self.message_ms = self.sent_ms

    def leave(self) -> None:
        self.unanswered.left(self.number)
        self.unanswered.restart()
        self.sent_ms = self.message_ms = 0.0


@pytest.mark.parametrize(
    ("failover_s", "silent", "speed", "left_after"),
    [
        (2.0, SPEECH, 1.0, 5.0),
        (0.5, SPEECH, 1.0, 3.5),
        (7.0, SPEECH, 1.0, 10.0),
        (2.0, SILENCE, 1.0, None),
        (2.0, LOUD * 250, 1.0, None),
        (2.0, SPEECH, 0.5, 10.0),  # the producer pauses, without filler
        (2.0, SPEECH, 20.0, 5.0),  # a backlog: its messages come in real time
    ],
)
def test_provider_is_stuck_after_its_lag_and_the_failover_time(
    failover_s: float, silent: bytes, speed: float, left_after: float | None
) -> None:
    found = Turn(failover_s).play(60, silent, speed=speed)
    assert found == (left_after and pytest.approx(left_after, abs=0.6))


def test_answers_and_pauses_are_waited_for() -> None:
    turn = Turn()
    for _ in range(10):
        assert turn.play(4.8) is None
        turn.answer()
    assert turn.play(3.0) is None
    assert turn.play(20.0, SILENCE) is None
    assert turn.play(5.0) is not None, "the speech before the pause is still unanswered"


def test_quieter_sound_than_the_answered_speech_is_no_evidence() -> None:
    turn = Turn()
    assert turn.unanswered.least_quiet == 0
    assert turn.play(1.0) is None
    assert turn.unanswered.least_quiet == 100
    turn.answer()
    assert turn.play(0.1) is None
    assert turn.unanswered.least_quiet == 0, "it is measured again"


def test_next_provider_gets_twice_as_long_inside_the_turn() -> None:
    turn = Turn()
    assert turn.play(60) == pytest.approx(5.0, abs=0.6)
    turn.leave()
    assert turn.play(60) == pytest.approx(10.0, abs=0.6)
    turn.leave()
    turn.number += 1
    assert turn.play(60) == pytest.approx(5.0, abs=0.6)


def test_socket_without_any_message_counts_from_its_begin() -> None:
    turn = Turn()
    assert turn.play(4.0) is None
    turn.unanswered.restart()
    turn.sent_ms = 0.0
    assert turn.play(60) == pytest.approx(5.0, abs=0.6)
    assert turn.unanswered.unanswered_s == 2 * WINDOW_MS / 1_000
