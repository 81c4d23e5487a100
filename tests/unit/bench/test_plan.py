"""Which words every session of a benchmark sends, and when."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import Encoding
from worker.bench.plan import SLOT_MS, WORDS, LoadPlan
from worker.bench.speech import Speech, starts
from worker.bench.words import compare
from worker.local.emulator.engines.base import AudioFormat, EngineEvent, TurnSettings
from worker.local.emulator.engines.script import ScriptEngine, words_of

PLANS = st.builds(
    LoadPlan,
    sessions=st.integers(1, 400),
    chunk_ms=st.integers(1, 30).map(lambda slots: slots * SLOT_MS),
    warmup=st.floats(1, 20),
)


@given(PLANS)
def test_sessions_start_in_first_half_of_warm_up(plan: LoadPlan) -> None:
    slots = plan.warmup / 2 * 1_000 / SLOT_MS + plan.chunk_ms / SLOT_MS
    for start in starts(plan):
        assert 0 <= start.slot <= slots
        assert start.silent_chunks >= 0


@given(PLANS)
def test_chunks_are_spread_over_the_chunk_interval(plan: LoadPlan) -> None:
    phases = plan.chunk_ms // SLOT_MS
    crowds = Counter(start.slot % phases for start in starts(plan))
    assert max(crowds.values()) <= plan.sessions / phases + 3


@given(PLANS)
def test_turns_are_spread_over_the_utterance(plan: LoadPlan) -> None:
    slots = plan.chunk_ms // SLOT_MS
    crowds = Counter(
        (start.slot // slots + start.silent_chunks) % plan.cycle for start in starts(plan)
    )
    assert max(crowds.values()) <= plan.sessions / plan.cycle + 1


@pytest.mark.parametrize(
    ("encoding", "rate", "chunk_ms"),
    [
        (Encoding.PCM_S16LE, 16_000, 100),
        (Encoding.PCM_MULAW, 8_000, 20),
        (Encoding.PCM_F32LE, 11_025, 30),
        (Encoding.PCM_S16LE, 16_000, 300),
    ],
)
async def test_each_word_is_complete_with_its_last_chunk(
    encoding: Encoding, rate: int, chunk_ms: int
) -> None:
    plan = LoadPlan(encoding=encoding, sample_rate=rate, chunk_ms=chunk_ms, seconds=5, warmup=1)
    speech = Speech(plan)
    events: list[EngineEvent] = []
    engine = ScriptEngine()
    stream = engine.open(AudioFormat(encoding, rate), TurnSettings(), (), events.append)
    chunk_of: dict[int | str, int] = {}
    texts = []
    for number, chunk in enumerate(speech.chunks):
        await stream.feed(chunk)
        for event in events:
            words = words_of(event.transcript or "")
            chunk_of |= {word: number for word in words if word not in chunk_of}
            if event.kind == "turn.end":
                texts.append(words)
        events.clear()
    spoken = speech.words_in(len(speech.chunks))
    assert spoken == len(texts) * WORDS
    assert [word for text in texts for word in text] == list(range(spoken))
    assert chunk_of == {word: speech.last_chunk(word) for word in range(spoken)}


@pytest.mark.parametrize("late", range(28))
async def test_late_chunk_interrupts_word_around_it(late: int) -> None:
    plan = LoadPlan(seconds=5, warmup=1)
    speech = Speech(plan)
    transcripts: list[str] = []

    def receive(event: EngineEvent) -> None:
        if event.kind == "turn.end":
            transcripts.append(event.transcript or "")

    audio = AudioFormat(plan.encoding, plan.sample_rate)
    stream = ScriptEngine().open(audio, TurnSettings(), (), receive)
    for number, chunk in enumerate(speech.chunks):
        if number == late:
            await stream.feed(speech.silence)
        await stream.feed(chunk)
    received = [word for transcript in transcripts for word in words_of(transcript)]
    sent = speech.words_in(len(speech.chunks))
    interrupted = speech.word_around(late)
    torn = [] if interrupted is None else [interrupted]
    assert compare(sent, received).lost == torn
    assert not any(compare(sent, received).without(torn))


@settings(max_examples=20)
@given(PLANS)
def test_plan_has_enough_words(plan: LoadPlan) -> None:
    speech = Speech(plan)
    needed = (plan.warmup + plan.seconds) * plan.chunks_per_s
    assert len(speech.chunks) >= needed + plan.cycle - 1
    assert len(speech.chunks) % plan.cycle == 0


@settings(max_examples=20)
@given(PLANS, st.floats(1, 60))
def test_sessions_end_spread_over_their_duration(plan: LoadPlan, life: float) -> None:
    brief = msgspec.structs.replace(plan, life=life)
    lives = [start.life for start in starts(brief)]
    assert lives == sorted(lives, reverse=True)
    assert 0 < lives[-1] <= lives[0] == brief.life_chunks
    assert len(Speech(brief).chunks) >= brief.life_chunks + brief.cycle - 1
