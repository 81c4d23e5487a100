"""When audio between turns is speech, and when a socket without an answer to it is replaced."""

import pytest

from worker.core.unanswered_speech import MAX_WINDOWS, UnansweredSpeech, is_speech

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
