"""Audio of the sessions of a load benchmark, and when each session starts."""

import math
from typing import Final, NamedTuple

from worker.bench.plan import SLOT_MS, WORDS, LoadPlan
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.engines.script_words import WORD_MS

GOLDEN: Final = (math.sqrt(5) - 1) / 2
"""Step that covers an interval evenly for any number of sessions."""


class Start(NamedTuple):
    """Start of a session, and the silence before its first utterance."""

    slot: int
    silent_chunks: int
    life: float = math.inf
    """Number of chunks, silence included, after which the session ends with the utterance."""


def starts(plan: LoadPlan) -> list[Start]:
    """Return the start of each session.

    Chunks are spread evenly over the chunk interval, turns over the utterance, and the ends of the
    first sessions over a session's life.
    """
    slots = plan.chunk_ms // SLOT_MS  # of a chunk
    ramp = plan.warmup / 2 * plan.chunks_per_s  # chunks
    result = []
    for number in range(plan.sessions):
        share = number / plan.sessions
        phase = int(number * GOLDEN % 1 * slots)
        chunk = int(share * ramp)
        silent = (int(share * plan.cycle) - chunk) % plan.cycle
        result.append(Start(chunk * slots + phase, silent, (1 - share) * plan.life_chunks))
    return result


class Speech:
    """Audio of every session: numbered words, in utterances, split into chunks.

    All sessions share it. They start at different times.
    """

    def __init__(self, plan: LoadPlan) -> None:
        audio = AudioFormat(plan.encoding, plan.sample_rate)
        width = plan.encoding.width
        self._cycle = plan.cycle
        cuts = [round(plan.sample_rate * plan.chunk_ms * n / 1_000) for n in range(plan.cycle + 1)]
        word = round(plan.sample_rate * WORD_MS / 1_000)
        self._cuts = cuts  # the first sample of each chunk of an utterance
        self._word = word  # samples of a word
        self._last_chunks = [
            next(n for n in range(plan.cycle) if cuts[n + 1] >= word * (nth + 1))
            for nth in range(WORDS)
        ]
        self.silence: Final = synthesize_silence(plan.chunk_ms, audio)
        """A chunk of silence."""
        longest = plan.warmup + plan.seconds if plan.life is None else plan.life
        utterances = math.ceil(longest * plan.chunks_per_s / plan.cycle) + 1
        chunks: list[bytes] = []
        for first in range(0, utterances * WORDS, WORDS):
            sound = synthesize_words(range(first, first + WORDS), audio)
            sound += synthesize_silence(plan.cycle * plan.chunk_ms - WORDS * WORD_MS, audio)
            chunks += [sound[cuts[n] * width : cuts[n + 1] * width] for n in range(plan.cycle)]
        self.chunks: Final = chunks

    def last_chunk(self, word: int) -> int:
        """Return the chunk that contains the end of a word."""
        return word // WORDS * self._cycle + self._last_chunks[word % WORDS]

    def word_around(self, chunk: int) -> int | None:
        """Return the word that a chunk begins inside of; None if it begins between two words."""
        utterance, place = divmod(chunk, self._cycle)
        word, into = divmod(self._cuts[place], self._word)
        return utterance * WORDS + word if into and word < WORDS else None

    def words_in(self, chunks: int) -> int:
        """Return the number of words in `chunks`, a whole number of utterances."""
        return chunks // self._cycle * WORDS
