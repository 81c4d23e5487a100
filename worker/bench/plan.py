"""Plans of the benchmarks."""

import math
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from schemas import Encoding
from schemas.audio import ProviderName

SLOT_MS: Final = 10
"""Length of a slot in milliseconds. Chunks due within a slot are appended in one pipeline."""

WORDS: Final = 8
"""Number of words in an utterance."""

PAUSE_MS: Final = 1_200
"""Minimum pause after an utterance; the script engine ends a turn after 480 ms."""

RecoveryFault = Literal["kill", "drain", "cut"]
RECOVERY_FAULTS: Final[tuple[RecoveryFault, ...]] = ("kill", "drain", "cut")

LATENCY_MS: Final = 150.0
"""Event latency of the STT server of the recovery benchmark, in milliseconds."""

Repeat = Annotated[int, Meta(ge=1, le=100)]
ChunkMs = Annotated[int, Meta(ge=SLOT_MS, le=300, multiple_of=SLOT_MS)]
Seconds = Annotated[float, Meta(ge=1, le=14_400)]


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of a load benchmark."""

    sessions: Annotated[int, Meta(ge=1, le=10_000)] = 100
    chunk_ms: ChunkMs = 100
    seconds: Seconds = 20.0
    """Measured seconds, after the warm-up."""
    warmup: Seconds = 5.0
    """Seconds of warm-up; sessions start in its first half."""
    life: Seconds | None = None
    """Seconds after which a session ends, at the end of an utterance, and another replaces it;
    None for the whole run."""
    encoding: Encoding = Encoding.PCM_S16LE
    sample_rate: Annotated[int, Meta(ge=8_000, le=192_000)] = 16_000
    traced: bool = False
    """Whether the worker exports its spans, to a collector that discards them."""
    provider: ProviderName = "cartesia"
    """Provider whose protocol the STT server serves."""

    @property
    def cycle(self) -> int:
        """Number of chunks in an utterance and the pause after it."""
        from worker.local.emulator.engines.script_words import WORD_MS  # imports numpy

        return math.ceil((WORDS * WORD_MS + PAUSE_MS) / self.chunk_ms)

    @property
    def chunks_per_s(self) -> float:
        """Chunks per second of one session."""
        return 1_000 / self.chunk_ms

    @property
    def life_chunks(self) -> float:
        """Number of chunks in a session's life."""
        return math.inf if self.life is None else self.life * self.chunks_per_s

    @property
    def last_slot(self) -> int:
        """Slot from which sessions end at the end of their utterance."""
        return round((self.warmup + self.seconds) * 1_000 / SLOT_MS)


class RecoveryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of a recovery benchmark."""

    what: tuple[RecoveryFault, ...] = RECOVERY_FAULTS
    kill_sessions: Annotated[int, Meta(ge=1, le=2_000)] = 50
    """Number of sessions inside a turn when their worker is killed."""
    drain_sessions: Annotated[int, Meta(ge=1, le=2_000)] = 200
    """Number of sessions between turns when their worker is stopped."""
    trials: Annotated[int, Meta(ge=1, le=500)] = 20
    """Number of sockets cut in each scenario; each has a twin session without a cut."""
    chunk_ms: ChunkMs = 100
    repeat: Repeat = 1
