"""Which text of repeated decodes is published."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from worker.local.emulator.engines.speech_text import Tokens, Transcript


class Letters:
    """Tokens are letters; capitals begin words."""

    def text(self, tokens: Sequence[int]) -> str:
        return "".join(
            (" " if self.starts_word(token) else "") + chr(token) for token in tokens
        ).strip()

    def starts_word(self, token: int) -> bool:
        return chr(token).isupper()


def tokens(letters: str) -> Tokens:
    return tuple(map(ord, letters))


def shown(*readings: str) -> list[str]:
    transcript = Transcript(Letters())
    texts = []
    for reading in readings:
        transcript.read(tokens(reading))
        texts.append(transcript.text)
    return texts


def test_one_decode_shows_nothing() -> None:
    assert shown("ItWas") == [""]


def test_word_is_shown_once_two_decodes_agree() -> None:
    assert shown("ItWas", "ItWasThe") == ["", "It"]
    assert shown("ItWash", "ItWasThe") == ["", "It"]
    assert shown("ItWas", "ItIs") == ["", ""]
    assert shown("It", "It") == ["", ""]


def test_decodes_must_agree_consecutively() -> None:
    assert shown("ItWas", "AtWas", "ItWas", "ItWasThe") == ["", "", "", "It"]


def test_punctuation_belongs_to_its_word() -> None:
    assert shown("It,WasT", "ItWasT") == ["", ""]
    assert shown("It,WasT", "It,WasT") == ["", "It, Was"]


def test_settling_shows_all_and_begins_segment() -> None:
    transcript = Transcript(Letters())
    transcript.read(tokens("ItWasThe"))
    transcript.read(tokens("ItWasThe"))
    assert transcript.shown == tokens("ItWas")
    transcript.settle(tokens("ItWasThem."))
    assert transcript.text == "It Was Them."
    assert transcript.shown == ()
    transcript.read(tokens("AndUs"))
    transcript.read(tokens("AndUs"))
    assert transcript.text == "It Was Them. And"
    transcript.settle(())
    assert transcript.text == "It Was Them."


def test_empty_segments_leave_no_space() -> None:
    transcript = Transcript(Letters())
    transcript.settle(())
    assert transcript.text == ""
    transcript.settle(tokens("So"))
    transcript.settle(())
    assert transcript.text == "So"


readings = st.lists(st.text("AaBb.", max_size=6), min_size=1, max_size=8)


@given(readings)
def test_shown_text_only_grows(readings: list[str]) -> None:
    transcript = Transcript(Letters())
    texts = [""]
    for number, reading in enumerate(readings):
        # As the recognizer does: continue with a new word after the shown text.
        going_on = transcript.shown + tokens(reading if not transcript.shown else "C" + reading)
        if number % 3 == 2:
            transcript.settle(going_on)
        else:
            transcript.read(going_on)
        texts.append(transcript.text)
    assert all(after.startswith(before) for before, after in pairwise(texts))
