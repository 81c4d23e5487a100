"""Scripts of a chaos run: words and producer behavior, derived from the seed. No I/O."""

import random
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

import msgspec

from schemas.audio import MAX_AUDIO_BYTES, ProviderName
from tests.chaos.plan import ChaosPlan
from worker.bench.checker import Span
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.engines.script_words import WORD_MS

Mode = Literal["plain", "numbered", "resending", "restarting"]
"""Producer behavior: without `seq`; with `seq` and `src`; with both, and some entries appended
again; with both, and a new `src` half proxy, as after a producer restart."""

BULK_MS: Final = 8_000
"""Length of a bulk chunk in milliseconds, far longer than usual."""

_FORMATS: Final = (
    AudioFormat("pcm_s16le", 16_000),
    AudioFormat("pcm_s16le", 16_000),
    AudioFormat("pcm_s16le", 8_000),
    AudioFormat("pcm_mulaw", 8_000),
    AudioFormat("pcm_mulaw", 8_000),
    AudioFormat("pcm_alaw", 8_000),
    AudioFormat("pcm_f32le", 16_000),
    AudioFormat("pcm_s32le", 16_000),
)
_LONG: Final = (1.2, 1.8)
"""Minimum and maximum length of a long turn, as multiples of `max_lag_s`."""

_CHUNKS_MS: Final = (20, 40, 60, 100, 100, 200)


class Turn(msgspec.Struct, frozen=True):
    """A user's turn: words with short pauses between, and a pause that ends the turn."""

    pauses_ms: tuple[int, ...]
    """Pause after each word except the last."""
    after_ms: int
    stalls: bool
    """Whether the producer sends nothing during the pause after the turn, instead of silence."""

    @property
    def words(self) -> int:
        """Number of words."""
        return len(self.pauses_ms) + 1

    @property
    def seconds(self) -> float:
        """Duration from the first word to the last."""
        return (self.words * WORD_MS + sum(self.pauses_ms)) / 1_000


class Wishes(msgspec.Struct, frozen=True):
    """Fields of a session's entry that choose its providers."""

    provider: ProviderName | None = None
    providers: tuple[ProviderName, ...] = ()
    language: str | None = None

    def allows(self, provider: str) -> bool:
        """Return whether a provider may serve the session."""
        if self.language == FLUX_LANGUAGE:
            return provider == "flux"
        return provider in (self.providers or (self.provider or provider,))


FLUX_LANGUAGE: Final = "de-CH"
"""A language that only Flux speaks."""

_WISHES: Final = (
    Wishes(),
    Wishes(provider="cartesia"),
    Wishes(provider="flux"),
    Wishes(providers=("cartesia", "flux")),
    Wishes(providers=("flux", "cartesia")),
    Wishes(language="en-GB"),
    Wishes(language=FLUX_LANGUAGE),
)
_WISHES_SHARE: Final = 0.5
"""Share of the sessions that ask for providers."""

_LONG_SESSION_SHARE: Final = 0.2
_LONG_SESSION_TURNS: Final = (12, 25)
"""Of sessions that last long enough to return to their first provider."""


class ScriptedSession(msgspec.Struct, frozen=True, kw_only=True):
    """One session: its turns, and how the producer appends them."""

    name: str
    """Id of the session."""
    audio: AudioFormat
    lane: str = "0"
    out: Literal["lane", "session"] = "lane"
    mode: Mode = "plain"
    chunk_ms: int = 100
    random_sizes: bool = False
    """Whether chunks have random sizes, and so may end inside a sample."""
    bulk: bool = False
    """Whether the first chunk has `BULK_MS`."""
    announced_late: bool = False
    """Whether the first audio is appended before the session is announced."""
    linger_s: float = 0.0
    """Delay from the last audio to the `end`."""
    turns: tuple[Turn, ...]
    seed: str
    wishes: Wishes = Wishes()

    @property
    def words(self) -> int:
        """Number of words: 0 to `words` - 1."""
        return sum(turn.words for turn in self.turns)

    @property
    def seconds(self) -> float:
        """Duration from the first sample to the `end`."""
        pauses_ms = sum(sum(turn.pauses_ms) + turn.after_ms for turn in self.turns)
        if self.turns[-1].stalls:
            pauses_ms -= self.turns[-1].after_ms  # nothing is sent after it
        return (self.words * WORD_MS + pauses_ms) / 1_000 + self.linger_s


class Chunk(NamedTuple):
    """Audio of one entry."""

    due_s: float
    """Seconds from the first sample; no audio is appended before it is complete."""
    audio: bytes
    torn: int | None
    """Word that begins before this chunk and continues in it."""


def scripted_sessions(plan: ChaosPlan) -> Iterator[ScriptedSession]:
    """Yield the sessions of a run.

    With several providers some sessions ask for one, and some are long. A mixed fleet would reject
    sessions that ask for a provider that a worker does not have.
    """
    rng = random.Random(f"{plan.seed} voices")
    long_rng = random.Random(f"{plan.seed} long turns")
    provider_rng = random.Random(f"{plan.seed} providers")
    several = len(plan.provider_names) > 1
    number, turns = 0, plan.turns
    while turns > 0:
        count = rng.randint(3, 7)
        if several and provider_rng.random() < _LONG_SESSION_SHARE:
            count = provider_rng.randint(*_LONG_SESSION_TURNS)
        count = min(turns, count)
        asks = several and not plan.mixed and provider_rng.random() < _WISHES_SHARE
        drawn = _script(rng, plan.seed, number, count)
        yield msgspec.structs.replace(
            drawn,
            turns=tuple(_lengthened(long_rng, plan, turn) for turn in drawn.turns),
            wishes=provider_rng.choice(_WISHES) if asks else Wishes(),
        )
        turns -= count
        number += 1


def _lengthened(rng: random.Random, plan: ChaosPlan, turn: Turn) -> Turn:
    """Draw whether a turn is long; a long turn has only the last pause."""
    if not plan.long_every or rng.randrange(plan.long_every):
        return turn
    long_ms = rng.uniform(*_LONG) * (plan.max_lag_s or ChaosPlan().max_lag_s) * 1_000
    return msgspec.structs.replace(turn, pauses_ms=(0,) * int(long_ms / WORD_MS))


def _script(rng: random.Random, seed: int, number: int, turns: int) -> ScriptedSession:
    modes: tuple[Mode, ...] = ("plain", "numbered", "resending", "restarting")
    bulk = number == 1
    return ScriptedSession(
        name=f"chaos-{seed}-{number}",
        audio=_FORMATS[0] if bulk else rng.choice(_FORMATS),
        lane=rng.choice(("0", "0", "0", "1")),
        out=rng.choice(("lane", "lane", "lane", "session")),
        mode=rng.choice(modes),
        chunk_ms=rng.choice(_CHUNKS_MS),
        random_sizes=rng.random() < 0.3,
        bulk=bulk,
        announced_late=rng.random() < 0.1,
        linger_s=rng.choice((0.0, 0.0, 0.0, 0.3, 3.0)),
        turns=tuple(_turn(rng) for _ in range(turns)),
        seed=f"{seed} {number}",
    )


def _turn(rng: random.Random) -> Turn:
    words = rng.randint(1, 6)
    pauses = tuple(rng.choice((0, 0, rng.randint(20, 400))) for _ in range(words - 1))
    stalls = rng.random() < 0.15
    after_ms = rng.randint(1_800, 3_000) if stalls else rng.randint(600, 3_000)
    return Turn(pauses, after_ms, stalls)


def chunks(script: ScriptedSession) -> Iterator[Chunk]:
    """Split the audio of a session into chunks."""
    rng = random.Random(f"{script.seed} chunks")
    bytes_per_ms = len(synthesize_silence(1_000, script.audio)) / 1_000
    silent_s = 0.0
    at = 0  # offset in the session, in bytes
    bulk = script.bulk
    for sound, words, stall_ms in _stretches(script):
        begin = 0
        while begin < len(sound):
            ms: float = BULK_MS if bulk else script.chunk_ms
            if script.random_sizes and not bulk:
                ms = rng.uniform(20, 200)
            size = max(1, int(ms * bytes_per_ms))
            if not script.random_sizes:
                size -= size % int(bytes_per_ms * 1_000 / script.audio.sample_rate)
            bulk = False
            audio = sound[begin : begin + min(size, MAX_AUDIO_BYTES)]
            due_s = silent_s + (at + begin + len(audio)) / bytes_per_ms / 1_000
            yield Chunk(due_s, audio, _torn(words, begin))
            begin += len(audio)
        at += len(sound)
        silent_s += stall_ms / 1_000


class _Span(NamedTuple):
    start: int
    end: int
    word: int


def _stretches(script: ScriptedSession) -> Iterator[tuple[bytes, list[_Span], int]]:
    """Yield continuous audio, its words, and the duration of the stall after it."""
    sound = bytearray()
    words: list[_Span] = []
    word = 0
    for turn in script.turns:
        for pause_ms in (*turn.pauses_ms, 0 if turn.stalls else turn.after_ms):
            spoken = synthesize_words([word], script.audio)
            words.append(_Span(len(sound), len(sound) + len(spoken), word))
            sound += spoken + synthesize_silence(pause_ms, script.audio)
            word += 1
        if turn.stalls:
            yield bytes(sound), words, turn.after_ms
            sound, words = bytearray(), []
    if sound:
        yield bytes(sound), words, 0


def spans(script: ScriptedSession) -> tuple[Span, ...]:
    """Return the position of each word in the session's audio."""
    found, ms = [], 0.0
    for turn in script.turns:
        for pause_ms in (*turn.pauses_ms, 0 if turn.stalls else turn.after_ms):
            found.append(Span(ms, ms + WORD_MS))
            ms += WORD_MS + pause_ms
    return tuple(found)


def _torn(words: list[_Span], at: int) -> int | None:
    """Return the word that contains byte `at`."""
    nth = bisect_right(words, at, key=lambda span: span.start) - 1
    if nth >= 0 and words[nth].start < at < words[nth].end:
        return words[nth].word
    return None
