"""Plan of a benchmark, and the audio of its sessions."""

import math
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from schemas import Encoding
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.engines.script_words import WORD_MS

SLOT_MS: Final = 10
"""Length of a slot in milliseconds. Chunks due within a slot are appended in one pipeline."""

WORDS: Final = 8
"""Number of words in an utterance."""

PAUSE_MS: Final = 1_200
"""Minimum pause after an utterance; the script engine ends a turn after 480 ms."""

_GOLDEN: Final = (math.sqrt(5) - 1) / 2


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of a benchmark."""

    sessions: Annotated[int, Meta(ge=1, le=10_000)] = 100
    chunk_ms: Annotated[int, Meta(ge=SLOT_MS, le=300, multiple_of=SLOT_MS)] = 100
    seconds: Annotated[float, Meta(ge=1, le=3_600)] = 20.0
    """Measured seconds, after the warm-up."""
    warmup: Annotated[float, Meta(ge=1, le=600)] = 5.0
    """Seconds of warm-up; sessions start in its first half."""
    life: Annotated[float, Meta(ge=1, le=3_600)] | None = None
    """Seconds after which a session ends, at the end of an utterance, and another replaces it;
    None for the whole run."""
    encoding: Encoding = Encoding.PCM_S16LE
    sample_rate: Annotated[int, Meta(ge=8_000, le=192_000)] = 16_000
    traced: bool = False
    """Whether the worker exports its spans, to a collector that discards them."""

    @property
    def cycle(self) -> int:
        """Number of chunks in an utterance and the pause after it."""
        return math.ceil((WORDS * WORD_MS + PAUSE_MS) / self.chunk_ms)

    @property
    def chunks_per_s(self) -> float:
        """Chunks per second of one session."""
        return 1_000 / self.chunk_ms

    @property
    def life_chunks(self) -> float:
        """Number of chunks in a session's life."""
        return math.inf if self.life is None else self.life * self.chunks_per_s


class Start(NamedTuple):
    """Start of a session, and the silence before its first utterance."""

    slot: int
    silent_chunks: int
    life: float = math.inf
    """Number of chunks, silence included, after which the session ends with the utterance."""


def starts(plan: Plan) -> list[Start]:
    """Return the start of each session.

    Chunks are spread evenly over the chunk interval, turns over the utterance, and the ends of the
    first sessions over a session's life.
    """
    slots = plan.chunk_ms // SLOT_MS  # of a chunk
    ramp = plan.warmup / 2 * plan.chunks_per_s  # chunks
    result = []
    for number in range(plan.sessions):
        share = number / plan.sessions
        # Steps of the golden ratio cover the interval evenly for any number of sessions.
        phase = int(number * _GOLDEN % 1 * slots)
        chunk = int(share * ramp)
        silent = (int(share * plan.cycle) - chunk) % plan.cycle
        result.append(Start(chunk * slots + phase, silent, (1 - share) * plan.life_chunks))
    return result


class Speech:
    """Audio of every session: numbered words, in utterances, split into chunks.

    All sessions share it. They start at different times.
    """

    def __init__(self, plan: Plan) -> None:
        audio = AudioFormat(plan.encoding, plan.sample_rate)
        width = plan.encoding.width
        self._cycle = plan.cycle
        cuts = [round(plan.sample_rate * plan.chunk_ms * n / 1_000) for n in range(plan.cycle + 1)]
        word = round(plan.sample_rate * WORD_MS / 1_000)
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

    def words_in(self, chunks: int) -> int:
        """Return the number of words in `chunks`, a whole number of utterances."""
        return chunks // self._cycle * WORDS
