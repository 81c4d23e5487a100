"""The speech engine, end to end on real speech."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import anyio
import numpy as np
import pytest

from tests.support.sounds import played, samples_of, wire
from worker.local.clips import CLIPS, Clip
from worker.local.emulator.engines.base import AudioFormat, EngineEvent, TurnSettings
from worker.local.emulator.engines.speech import SpeechEngine
from worker.local.emulator.engines.speech_audio import RATE, WINDOW, Samples
from worker.local.emulator.engines.speech_text import Tokens
from worker.local.wer import WordErrors, word_errors

AUDIO = AudioFormat("pcm_s16le", RATE)
SILENCE = bytes(2 * RATE)  # 1 s
KENNEDY, AUSTEN = CLIPS[0], CLIPS[1]
COMMANDS = CLIPS[-1]

# What may follow each event of one connection.
NEXT = {
    None: {"turn.start"},
    "turn.start": {"turn.update", "turn.eager_end", "turn.end"},
    "turn.update": {"turn.update", "turn.eager_end", "turn.end"},
    "turn.eager_end": {"turn.resume", "turn.end"},
    "turn.resume": {"turn.update", "turn.eager_end", "turn.end"},
    "turn.end": {"turn.start"},
}


@pytest.fixture(scope="module")
def engine() -> SpeechEngine:
    return SpeechEngine()


async def hear(
    engine: SpeechEngine,
    data: bytes,
    *,
    sizes: Callable[[], int] = lambda: 3200,
    audio: AudioFormat = AUDIO,
    turn: TurnSettings = TurnSettings(),  # noqa: B008 - frozen
) -> list[EngineEvent]:
    """Give the events of one connection whose chunks have those sizes."""
    events: list[EngineEvent] = []
    hearing = engine.open(audio, turn, (), events.append)
    at = 0
    while at < len(data):
        size = sizes()
        await hearing.feed(data[at : at + size])
        at += size
    await hearing.flush()
    await hearing.aclose()
    return events


def of(clip: Clip, audio: AudioFormat = AUDIO) -> bytes:
    return played(clip.path, audio)


def kinds(events: Sequence[EngineEvent]) -> list[str]:
    return [event.kind for event in events]


def text(events: Sequence[EngineEvent]) -> str:
    return "".join(event.transcript or "" for event in events if event.kind == "turn.end")


def assert_well_formed(events: Sequence[EngineEvent]) -> None:
    """Check order, growth and the space between turns."""
    order: list[str | None] = [None, *kinds(events)]
    assert all(after in NEXT[before] for before, after in pairwise(order)), order
    assert order[-1] in (None, "turn.end")
    before = lead = ""
    for event in events:
        if event.kind in ("turn.start", "turn.resume"):
            assert event.transcript is None
            before = "" if event.kind == "turn.start" else before
            continue
        now = event.transcript
        assert now is not None
        assert now.startswith(before)
        assert now != before or event.kind != "turn.update"
        assert not now or now == lead + now.strip()
        before = now
        if event.kind == "turn.end" and now:
            lead = " "


async def test_bundled_clips(engine: SpeechEngine) -> None:
    total = WordErrors(0, 0)
    for clip in CLIPS:
        events = await hear(engine, of(clip))
        assert_well_formed(events)
        assert kinds(events).count("turn.update") > len(samples_of(clip.path, RATE)) / RATE / 2
        total += word_errors(clip.transcript, text(events))
    assert total.rate < 0.15


@pytest.mark.slow
async def test_chunking_makes_no_difference(engine: SpeechEngine) -> None:
    data = of(COMMANDS)
    expected = await hear(engine, data, sizes=lambda: len(data))
    assert kinds(expected).count("turn.end") >= 2
    for seed in range(2):
        sizes = partial(random.Random(seed).choice, (1, 333, 640, 9601))
        assert await hear(engine, data, sizes=sizes) == expected


async def test_turns_start_and_end_in_time(engine: SpeechEngine) -> None:
    # From the audio's clock: when chunks of one window have been heard.
    speech = np.concatenate(
        (np.zeros(2 * RATE, np.float32), samples_of(AUSTEN.path, RATE)[: 7 * RATE])
    )
    data = wire(speech, RATE, AUDIO) + 2 * SILENCE
    heard: list[tuple[float, str]] = []
    position = 0
    hearing = engine.open(
        AUDIO, TurnSettings(), (), lambda event: heard.append((position / RATE, event.kind))
    )
    for position in range(0, len(data) // 2, WINDOW):
        await hearing.feed(data[2 * position : 2 * (position + WINDOW)])
    (start, first), *_, (eager, eager_kind), (end, last) = heard
    assert (first, eager_kind, last) == ("turn.start", "turn.eager_end", "turn.end")
    assert 2.0 < start < 2.5
    assert 0.4 < end - eager < 0.5
    assert end < 9 + 1


async def test_telephone_audio(engine: SpeechEngine) -> None:
    audio = AudioFormat("pcm_mulaw", 8_000)
    events = await hear(engine, of(KENNEDY, audio), audio=audio)
    assert_well_formed(events)
    assert word_errors(KENNEDY.transcript, text(events)).rate < 0.25


async def test_a_lower_end_threshold_joins_turns(engine: SpeechEngine) -> None:
    turns = [
        kinds(await hear(engine, of(KENNEDY), turn=TurnSettings(end=end))).count("turn.end")
        for end in (0.5, 0.1)
    ]
    assert turns[0] > turns[1] == 1


async def test_settings_may_change_while_heard(engine: SpeechEngine) -> None:
    events: list[EngineEvent] = []
    hearing = engine.open(AUDIO, TurnSettings(), (), events.append)
    await hearing.feed(SILENCE)
    hearing.configure(TurnSettings(end=0.1))
    await hearing.feed(of(KENNEDY))
    await hearing.flush()
    assert_well_formed(events)
    assert kinds(events).count("turn.end") == 1


async def test_flush_ends_an_open_turn(engine: SpeechEngine) -> None:
    events: list[EngineEvent] = []
    hearing = engine.open(AUDIO, TurnSettings(), (), events.append)
    await hearing.feed(of(AUSTEN)[: 2 * 3 * RATE])
    assert "turn.end" not in kinds(events)
    await hearing.flush()
    assert_well_formed(events)
    assert "John Dashwood" in text(events)
    heard = len(events)
    await hearing.flush()
    assert len(events) == heard
    await hearing.feed(of(AUSTEN)[: 2 * 3 * RATE])
    await hearing.flush()
    assert_well_formed(events)
    assert kinds(events[heard:])[0] == "turn.start"


async def test_nothing_said_is_nothing_heard(engine: SpeechEngine) -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, 5 * RATE).astype(np.float32)
    assert await hear(engine, 5 * SILENCE + wire(noise, RATE, AUDIO)) == []
    assert await hear(engine, b"") == []


async def test_too_little_speech_is_no_word(engine: SpeechEngine) -> None:
    syllable = of(AUSTEN)[2 * RATE :][: 2 * RATE // 6]  # 167 ms
    events = await hear(engine, SILENCE + syllable + 2 * SILENCE)
    assert kinds(events) == ["turn.start", "turn.eager_end", "turn.end"]
    assert text(events) == ""


class Recorder(SpeechEngine):
    """Keeps the seconds of audio of every decode."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    async def read(self, samples: Samples, shown: Tokens) -> Tokens:
        self.seconds.append(len(samples) / RATE)
        return await super().read(samples, shown)


async def test_speech_without_a_pause_is_read_in_pieces() -> None:
    engine = Recorder()
    samples = np.concatenate([samples_of(clip.path, RATE) for clip in CLIPS[1:3]])
    parts = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW)
    voice = engine.silero.voice()
    fluent = np.concatenate([part for part in parts if voice.probability(part) > 0.8])
    events = await hear(engine, wire(fluent, RATE, AUDIO))
    assert_well_formed(events)
    assert kinds(events).count("turn.end") == 1
    assert max(engine.seconds) < 14.1
    assert len(fluent) / RATE > 15
    transcript = " ".join(clip.transcript for clip in CLIPS[1:3])
    assert word_errors(transcript, text(events)).rate < 0.3


async def test_syllables_far_apart_do_not_pile_up() -> None:
    engine = Recorder()
    syllable = of(AUSTEN)[2 * RATE :][: 2 * RATE // 6] + SILENCE[: 2 * RATE * 5 // 6]
    turn = TurnSettings(end=0.05, end_timeout_ms=11_200)
    events = await hear(engine, SILENCE + 20 * syllable, turn=turn)
    assert_well_formed(events)
    assert kinds(events).count("turn.start") == 1
    assert kinds(events).count("turn.resume") > 5
    assert max(engine.seconds) < 14.1


class Loaded(SpeechEngine):
    """Has always more to decode than it can."""

    @property
    def loaded(self) -> bool:
        return True


async def test_under_load_only_updates_are_left_out() -> None:
    events = await hear(Loaded(), of(COMMANDS))
    assert_well_formed(events)
    assert "turn.update" not in kinds(events)
    assert word_errors(COMMANDS.transcript, text(events)).rate < 0.25


async def test_connections_do_not_mix(engine: SpeechEngine) -> None:
    heard: dict[str, list[EngineEvent]] = {}

    async def connect(clip: Clip) -> None:
        heard[clip.path.stem] = await hear(engine, of(clip)[: 8 * 2 * RATE])

    async with anyio.create_task_group() as tasks:
        for clip in (KENNEDY, AUSTEN):
            tasks.start_soon(connect, clip)
    assert "fellow Americans" in text(heard["kennedy"])
    assert "John Dashwood" in text(heard["austen-1"])
    assert "Dashwood" not in text(heard["kennedy"])


def test_an_unknown_encoding(engine: SpeechEngine) -> None:
    with pytest.raises(KeyError):
        engine.open(AudioFormat("opus", RATE), TurnSettings(), (), lambda _: None)
