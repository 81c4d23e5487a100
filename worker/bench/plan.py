"""The plan of a benchmark, and what every session of it says."""

import math
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from schemas import Encoding
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.engines.script_words import WORD_MS

SLOT_MS: Final = 10
"""What is due within one slot is appended in one pipeline."""

WORDS: Final = 8
"""Of an utterance."""

PAUSE_MS: Final = 1_200
"""After it, at least: well over the 480 ms in which the script engine ends a turn."""

_GOLDEN: Final = (math.sqrt(5) - 1) / 2


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run."""

    sessions: Annotated[int, Meta(ge=1, le=10_000)] = 100
    chunk_ms: Annotated[int, Meta(ge=SLOT_MS, le=300, multiple_of=SLOT_MS)] = 100
    seconds: Annotated[float, Meta(ge=1, le=3_600)] = 20.0
    """Measured, from the end of the warm-up on."""
    warmup: Annotated[float, Meta(ge=1, le=600)] = 5.0
    """Sessions start during its first half."""
    life: Annotated[float, Meta(ge=1, le=3_600)] | None = None
    """Seconds after which a session ends, at the end of an utterance, and another begins in its
    place; None is the whole run."""
    encoding: Encoding = Encoding.PCM_S16LE
    sample_rate: Annotated[int, Meta(ge=8_000, le=192_000)] = 16_000
    traced: bool = False
    """Whether the worker exports its spans, to a collector that forgets them."""

    @property
    def cycle(self) -> int:
        """Chunks of an utterance and the pause after it."""
        return math.ceil((WORDS * WORD_MS + PAUSE_MS) / self.chunk_ms)

    @property
    def chunks_per_s(self) -> float:
        """Of one session."""
        return 1_000 / self.chunk_ms

    @property
    def life_chunks(self) -> float:
        """Chunks of a session's life."""
        return math.inf if self.life is None else self.life * self.chunks_per_s


class Start(NamedTuple):
    """When a session starts to send, and how long it is silent before its first utterance."""

    slot: int
    silent_chunks: int
    life: float = math.inf
    """Chunks it sends, silence included, before it ends with the utterance."""


def starts(plan: Plan) -> list[Start]:
    """Return when each session starts.

    Neither their chunks nor their turns coincide: both are spread evenly, over the chunk interval
    and over the utterance; the first lives end spread over a life.
    """
    slots = plan.chunk_ms // SLOT_MS  # of a chunk
    ramp = plan.warmup / 2 * plan.chunks_per_s  # chunks
    result = []
    for number in range(plan.sessions):
        share = number / plan.sessions
        # Steps of the golden ratio cover the interval evenly, however many they are.
        phase = int(number * _GOLDEN % 1 * slots)
        chunk = int(share * ramp)
        silent = (int(share * plan.cycle) - chunk) % plan.cycle
        result.append(Start(chunk * slots + phase, silent, (1 - share) * plan.life_chunks))
    return result


class Speech:
    """What every session says: numbered words, in utterances, cut into chunks.

    Built once and shared. Sessions begin it at different times.
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
        """A chunk of it."""
        longest = plan.warmup + plan.seconds if plan.life is None else plan.life
        utterances = math.ceil(longest * plan.chunks_per_s / plan.cycle) + 1
        chunks: list[bytes] = []
        for first in range(0, utterances * WORDS, WORDS):
            sound = synthesize_words(range(first, first + WORDS), audio)
            sound += synthesize_silence(plan.cycle * plan.chunk_ms - WORDS * WORD_MS, audio)
            chunks += [sound[cuts[n] * width : cuts[n + 1] * width] for n in range(plan.cycle)]
        self.chunks: Final = chunks

    def last_chunk(self, word: int) -> int:
        """Return the chunk that holds the end of a word."""
        return word // WORDS * self._cycle + self._last_chunks[word % WORDS]

    def words_in(self, chunks: int) -> int:
        """Return how many words so many chunks, a whole number of utterances, hold."""
        return chunks // self._cycle * WORDS
