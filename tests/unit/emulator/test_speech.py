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
from worker.local.wer import word_error_rate

AUDIO = AudioFormat("pcm_s16le", RATE)
SILENCE = bytes(2 * RATE)  # 1 s
KENNEDY, AUSTEN = CLIPS[0], CLIPS[1]
COMMANDS = CLIPS[-1]

# Events that may follow each event of one connection.
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


async def collect(
    engine: SpeechEngine,
    data: bytes,
    *,
    sizes: Callable[[], int] = lambda: 3200,
    audio: AudioFormat = AUDIO,
    turn: TurnSettings = TurnSettings(),  # noqa: B008 - frozen
) -> list[EngineEvent]:
    """Return the events of one connection with chunks of those sizes."""
    events: list[EngineEvent] = []
    stream = engine.open(audio, turn, (), events.append)
    at = 0
    while at < len(data):
        size = sizes()
        await stream.feed(data[at : at + size])
        at += size
    await stream.flush()
    await stream.aclose()
    return events


def of(clip: Clip, audio: AudioFormat = AUDIO) -> bytes:
    return played(clip.path, audio)


def kinds(events: Sequence[EngineEvent]) -> list[str]:
    return [event.kind for event in events]


def text(events: Sequence[EngineEvent]) -> str:
    return "".join(event.transcript or "" for event in events if event.kind == "turn.end")


def assert_words(event: EngineEvent, position: float) -> float:
    """Check the words of an event that follows one at this position; return its own position."""
    assert event.decoded_s >= position
    times = [time for word in event.words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert not times or times[-1] <= event.decoded_s
    if event.transcript is not None:
        assert [word.text for word in event.words] == event.transcript.split()
    return event.decoded_s


def assert_well_formed(events: Sequence[EngineEvent]) -> None:
    """Check order, growth and the space between turns."""
    order: list[str | None] = [None, *kinds(events)]
    assert all(after in NEXT[before] for before, after in pairwise(order)), order
    assert order[-1] in (None, "turn.end")
    before = lead = ""
    position = 0.0
    for event in events:
        position = assert_words(event, position)
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


async def test_bundled_clips_are_transcribed(engine: SpeechEngine) -> None:
    transcripts = []
    for clip in CLIPS:
        events = await collect(engine, of(clip))
        assert_well_formed(events)
        assert kinds(events).count("turn.update") > len(samples_of(clip.path, RATE)) / RATE / 2
        transcripts.append(text(events))
    assert word_error_rate([clip.transcript for clip in CLIPS], transcripts) < 0.15


@pytest.mark.slow
async def test_events_are_independent_of_chunking(engine: SpeechEngine) -> None:
    data = of(COMMANDS)
    expected = await collect(engine, data, sizes=lambda: len(data))
    assert kinds(expected).count("turn.end") >= 2
    for seed in range(2):
        sizes = partial(random.Random(seed).choice, (1, 333, 640, 9601))
        assert await collect(engine, data, sizes=sizes) == expected


async def test_turns_start_and_end_in_time(engine: SpeechEngine) -> None:
    # On the audio's clock: after chunks of one window were processed.
    speech = np.concatenate(
        (np.zeros(2 * RATE, np.float32), samples_of(AUSTEN.path, RATE)[: 7 * RATE])
    )
    data = wire(speech, RATE, AUDIO) + 2 * SILENCE
    received: list[tuple[float, str]] = []
    position = 0
    stream = engine.open(
        AUDIO, TurnSettings(), (), lambda event: received.append((position / RATE, event.kind))
    )
    for position in range(0, len(data) // 2, WINDOW):
        await stream.feed(data[2 * position : 2 * (position + WINDOW)])
    (start, first), *_, (eager, eager_kind), (end, last) = received
    assert (first, eager_kind, last) == ("turn.start", "turn.eager_end", "turn.end")
    assert 2.0 < start < 2.5
    assert 0.4 < end - eager < 0.5
    assert end < 9 + 1


async def test_telephone_audio_is_transcribed(engine: SpeechEngine) -> None:
    audio = AudioFormat("pcm_mulaw", 8_000)
    events = await collect(engine, of(KENNEDY, audio), audio=audio)
    assert_well_formed(events)
    assert word_error_rate([KENNEDY.transcript], [text(events)]) < 0.25


async def test_lower_end_threshold_joins_turns(engine: SpeechEngine) -> None:
    turns = [
        kinds(await collect(engine, of(KENNEDY), turn=TurnSettings(end=end))).count("turn.end")
        for end in (0.5, 0.1)
    ]
    assert turns[0] > turns[1] == 1


async def test_settings_can_change_mid_session(engine: SpeechEngine) -> None:
    events: list[EngineEvent] = []
    stream = engine.open(AUDIO, TurnSettings(), (), events.append)
    await stream.feed(SILENCE)
    stream.configure(TurnSettings(end=0.1))
    await stream.feed(of(KENNEDY))
    await stream.flush()
    assert_well_formed(events)
    assert kinds(events).count("turn.end") == 1


async def test_flush_ends_open_turn(engine: SpeechEngine) -> None:
    events: list[EngineEvent] = []
    stream = engine.open(AUDIO, TurnSettings(), (), events.append)
    await stream.feed(of(AUSTEN)[: 2 * 3 * RATE])
    assert "turn.end" not in kinds(events)
    await stream.flush()
    assert_well_formed(events)
    assert "John Dashwood" in text(events)
    received = len(events)
    await stream.flush()
    assert len(events) == received
    await stream.feed(of(AUSTEN)[: 2 * 3 * RATE])
    await stream.flush()
    assert_well_formed(events)
    assert kinds(events[received:])[0] == "turn.start"


async def test_silence_and_noise_give_no_events(engine: SpeechEngine) -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, 5 * RATE).astype(np.float32)
    assert await collect(engine, 5 * SILENCE + wire(noise, RATE, AUDIO)) == []
    assert await collect(engine, b"") == []


async def test_too_short_sound_is_no_turn(engine: SpeechEngine) -> None:
    syllable = of(AUSTEN)[2 * RATE :][: 2 * RATE // 6]  # 167 ms
    events = await collect(engine, SILENCE + syllable + 2 * SILENCE)
    assert kinds(events) == ["turn.start", "turn.eager_end", "turn.end"]
    assert text(events) == ""


class Recorder(SpeechEngine):
    """Records the seconds of audio of every decode."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    async def read(self, samples: Samples, shown: Tokens) -> Tokens:
        self.seconds.append(len(samples) / RATE)
        return await super().read(samples, shown)


async def test_speech_without_pause_is_decoded_in_pieces() -> None:
    engine = Recorder()
    samples = np.concatenate([samples_of(clip.path, RATE) for clip in CLIPS[1:3]])
    parts = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW)
    voice = engine.silero.voice()
    fluent = np.concatenate([part for part in parts if voice.probability(part) > 0.8])
    events = await collect(engine, wire(fluent, RATE, AUDIO))
    assert_well_formed(events)
    assert kinds(events).count("turn.end") == 1
    assert max(engine.seconds) < 14.1
    assert len(fluent) / RATE > 15
    transcript = " ".join(clip.transcript for clip in CLIPS[1:3])
    assert word_error_rate([transcript], [text(events)]) < 0.3


async def test_sparse_syllables_do_not_accumulate() -> None:
    engine = Recorder()
    syllable = of(AUSTEN)[2 * RATE :][: 2 * RATE // 6] + SILENCE[: 2 * RATE * 5 // 6]
    turn = TurnSettings(end=0.05, end_timeout_ms=11_200)
    events = await collect(engine, SILENCE + 20 * syllable, turn=turn)
    assert_well_formed(events)
    assert kinds(events).count("turn.start") == 1
    assert kinds(events).count("turn.resume") > 5
    assert max(engine.seconds) < 14.1


class Loaded(SpeechEngine):
    """Always has more to decode than it can."""

    @property
    def loaded(self) -> bool:
        return True


async def test_load_drops_only_updates() -> None:
    events = await collect(Loaded(), of(COMMANDS))
    assert_well_formed(events)
    assert "turn.update" not in kinds(events)
    assert word_error_rate([COMMANDS.transcript], [text(events)]) < 0.25


async def test_concurrent_connections_do_not_mix(engine: SpeechEngine) -> None:
    received: dict[str, list[EngineEvent]] = {}

    async def connect(clip: Clip) -> None:
        received[clip.path.stem] = await collect(engine, of(clip)[: 8 * 2 * RATE])

    async with anyio.create_task_group() as tasks:
        for clip in (KENNEDY, AUSTEN):
            tasks.start_soon(connect, clip)
    assert "fellow Americans" in text(received["kennedy"])
    assert "John Dashwood" in text(received["austen-1"])
    assert "Dashwood" not in text(received["kennedy"])


def test_unknown_encoding_is_refused(engine: SpeechEngine) -> None:
    with pytest.raises(ValueError, match="opus"):
        engine.open(AudioFormat("opus", RATE), TurnSettings(), (), lambda _: None)


async def test_end_turn_keeps_all_words(engine: SpeechEngine) -> None:
    events: list[EngineEvent] = []
    stream = engine.open(AUDIO, TurnSettings(), (), events.append)
    await stream.end_turn()
    await stream.feed(of(AUSTEN)[: 2 * 3 * RATE])
    stream.report()
    await stream.end_turn()
    stream.report()
    replies = [event for event in events if event.kind == "progress"]
    assert [(event.trigger, event.transcript) for event in replies if not event.words] == [
        ("manual", ""),
        ("model", ""),
    ]
    assert (events[-2].kind, events[-2].trigger) == ("turn.end", "manual")
    assert "John Dashwood" in (events[-2].transcript or "")
    for event in events:
        assert_words(event, 0.0)
