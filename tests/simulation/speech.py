"""Speech of simulated calls: numbered words with pauses, as the script engine decodes them."""

import random
from functools import lru_cache
from typing import NamedTuple

from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.engines.script_words import WORD_MS

AUDIO = AudioFormat("pcm_s16le", 8_000)
BYTES_PER_MS = 16

LEAD_IN_MS = 400
"""Silence before the first word."""


class Word(NamedTuple):
    """A spoken word, in milliseconds of the call."""

    begins: int
    ends: int


class Speech:
    """What is spoken so far."""

    def __init__(self) -> None:
        self._sound = [synthesize_silence(LEAD_IN_MS, AUDIO)]
        self.words: list[Word] = []
        self.ms = LEAD_IN_MS

    @property
    def sound(self) -> bytes:
        """The audio."""
        return b"".join(self._sound)

    def say(self, pause_ms: int) -> None:
        """Speak the next word, then pause."""
        self._sound.append(_word(len(self.words)))
        self.words.append(Word(self.ms, self.ms + WORD_MS))
        self.ms += WORD_MS
        self.pause(pause_ms)

    def pause(self, ms: int) -> None:
        """Be silent."""
        self._sound.append(synthesize_silence(ms, AUDIO))
        self.ms += ms


def draw_speech(rng: random.Random, words_at_most: int) -> Speech:
    """Draw three to six turns with pauses inside and between them."""
    speech = Speech()
    for _ in range(rng.randint(3, 6)):
        for left in reversed(range(rng.randint(1, words_at_most))):
            pause_ms = rng.choice((0, 0, 10 * rng.randint(2, 40)))
            speech.say(pause_ms if left else 10 * rng.randint(60, 300))
    return speech


@lru_cache(maxsize=512)
def _word(number: int) -> bytes:
    return synthesize_words([number], AUDIO)
