"""The script engine: every sample counts, in every encoding, however the audio is split."""

import random
from collections.abc import Iterable

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.pcm import Encoding
from worker.local.emulator.engines.base import AudioFormat, EngineEvent, TurnSettings
from worker.local.emulator.engines.script import (
    ScriptEngine,
    ScriptOptions,
    ScriptStream,
    synthesize_silence,
    synthesize_words,
    words_of,
)
from worker.local.emulator.engines.script_text import STYLES
from worker.local.emulator.providers.cartesia import TurnOrder
from worker.local.pcm import encode

LINE = AudioFormat("pcm_s16le", 8000)
WORD_BYTES = len(synthesize_words([1], LINE))


def opened(
    audio: AudioFormat = LINE,
    turn: TurnSettings = TurnSettings(),  # noqa: B008 - frozen
    engine: ScriptEngine | None = None,
) -> tuple[ScriptStream, list[EngineEvent]]:
    events: list[EngineEvent] = []
    return (engine or ScriptEngine()).open(audio, turn, (), events.append), events


def events_of(
    pieces: Iterable[bytes],
    audio: AudioFormat = LINE,
    turn: TurnSettings = TurnSettings(),  # noqa: B008
) -> list[EngineEvent]:
    async def collect() -> list[EngineEvent]:
        stream, events = opened(audio, turn)
        for piece in pieces:
            await stream.feed(piece)
        await stream.flush()
        await stream.aclose()
        return events

    return anyio.run(collect)


def bare(events: Iterable[EngineEvent]) -> list[EngineEvent]:
    """Return the events without times, words and likelihoods, which have tests of their own."""
    return [EngineEvent(event.kind, event.transcript) for event in events]


def text_of(audio: bytes) -> str:
    return "".join(e.transcript or "" for e in events_of([audio]) if e.kind == "turn.end")


def kinds_of(events: list[EngineEvent]) -> list[str]:
    return [event.kind.removeprefix("turn.") for event in events]


@pytest.mark.parametrize("encoding", sorted(Encoding))
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 48000])
def test_words_are_recognised_in_every_format(encoding: str, rate: int) -> None:
    line = AudioFormat(encoding, rate)
    audio = (
        synthesize_silence(300, line)
        + synthesize_words([0, 1, 2**32 - 1], line)
        + synthesize_silence(600, line)
    )
    events = events_of([audio, synthesize_words([7], line)], line)
    assert bare(events) == [
        EngineEvent("turn.start"),
        EngineEvent("turn.update", "w0"),
        EngineEvent("turn.update", "w0 w1"),
        EngineEvent("turn.update", "w0 w1 w4294967295"),
        EngineEvent("turn.eager_end", "w0 w1 w4294967295"),
        EngineEvent("turn.end", "w0 w1 w4294967295"),
        EngineEvent("turn.start"),
        EngineEvent("turn.update", " w7"),
        EngineEvent("turn.end", " w7"),
    ]


@pytest.mark.parametrize(
    ("pauses_ms", "kinds"),
    [
        ([100], "start update update end"),
        ([239], "start update update end"),
        ([240], "start update eager_end resume update end"),
        ([479], "start update eager_end resume update end"),
        ([480], "start update eager_end end start update end"),
        ([300, 300], "start update eager_end resume update eager_end resume update end"),
    ],
)
def test_pauses_end_turns(pauses_ms: list[float], kinds: str) -> None:
    audio = synthesize_words([1], LINE) + b"".join(
        synthesize_silence(ms, LINE) + synthesize_words([2], LINE) for ms in pauses_ms
    )
    assert kinds_of(events_of([audio])) == kinds.split()


@pytest.mark.parametrize(
    ("turn", "eager_ms", "end_ms"),
    [
        (TurnSettings(), 240, 480),
        (TurnSettings(start=0.7, eager_end=0.6, end=0.4), 240, 400),
        (TurnSettings(eager_end=0.3, end=0.1), 480, 640),
        (TurnSettings(eager_end=0.3, end=0.05), 480, 680),
        (TurnSettings(eager_end=0.3, end=0.05, end_timeout_ms=640), 480, 640),
    ],
)
def test_lower_threshold_waits_longer(turn: TurnSettings, eager_ms: int, end_ms: int) -> None:
    def ends(silence_ms: float) -> list[str]:
        async def collect() -> list[str]:
            stream, events = opened(turn=turn)
            await stream.feed(synthesize_words([1], LINE) + synthesize_silence(silence_ms, LINE))
            return kinds_of(events)[2:]

        return anyio.run(collect)

    assert ends(eager_ms - 1) == []
    assert ends(eager_ms) == ["eager_end"]
    assert ends(end_ms - 1) == ["eager_end"]
    assert ends(end_ms) == ["eager_end", "end"]


async def test_settings_change_inside_turn() -> None:
    stream, events = opened()
    await stream.feed(synthesize_words([1], LINE) + synthesize_silence(450, LINE))
    stream.configure(TurnSettings(end=0.5))
    assert kinds_of(events) == ["start", "update", "eager_end"]
    await stream.feed(synthesize_silence(1, LINE))
    assert kinds_of(events) == ["start", "update", "eager_end", "end"]


async def test_turn_starts_40_ms_into_word() -> None:
    stream, events = opened()
    word = synthesize_words([1], LINE)
    await stream.feed(word[: 39 * 16])
    assert events == []
    await stream.feed(word[39 * 16 : 40 * 16])
    assert bare(events) == [EngineEvent("turn.start")]
    await stream.feed(word[40 * 16 :])
    assert bare(events[1:]) == [EngineEvent("turn.update", "w1")]


@settings(max_examples=60)
@given(st.data())
def test_events_are_independent_of_chunking(data: st.DataObject) -> None:
    encoding = data.draw(st.sampled_from(["pcm_s16le", "pcm_f32le", "pcm_alaw"]))
    line = AudioFormat(encoding, 8000)
    spoken = data.draw(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 700))))
    audio = b"".join(
        synthesize_words([number], line) + synthesize_silence(pause, line)
        for number, pause in spoken
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(audio)), max_size=8)))
    pieces = [audio[a:b] for a, b in zip([0, *cuts], [*cuts, len(audio)], strict=True)]
    events = events_of(pieces, line)
    assert events == events_of([audio], line)
    text = "".join(e.transcript or "" for e in events if e.kind == "turn.end")
    assert words_of(text) == [number for number, _ in spoken]


@settings(max_examples=150)
@given(st.data())
def test_any_damage_shows_in_transcript(data: st.DataObject) -> None:
    """Lose, repeat, move or change a stretch of a word:

    only that word changes, its neighbours do not.
    """
    before, after = synthesize_words([1, 2], LINE), synthesize_words([4, 5], LINE)
    word = synthesize_words([3], LINE)
    start = 2 * data.draw(st.integers(0, WORD_BYTES // 2 - 1))
    size = 2 * data.draw(st.integers(1, WORD_BYTES // 2 - start // 2))
    piece = word[start : start + size]
    harm = data.draw(st.sampled_from(["lose", "repeat", "zero", "reverse", "flip", "shift"]))
    match harm:
        case "lose":
            piece = b""
        case "repeat":
            piece *= 2
        case "zero":
            piece = bytes(size)
        case "reverse":
            piece = piece[::-1]
        case "flip":
            piece = bytes([piece[0] ^ 1]) + piece[1:]
        case _:
            piece = piece[1:]  # half a sample is lost, the rest of the audio is misaligned
    damaged = word[:start] + piece + word[start + size :]
    words = words_of(text_of(before + damaged + after))
    assert words[:2] == [1, 2]
    if harm == "lose" and size == WORD_BYTES:
        assert words == [1, 2, 4, 5]
    elif harm == "repeat" and size == WORD_BYTES:
        assert words == [1, 2, 3, 3, 4, 5]
    elif harm == "shift":
        assert words[2:]
        assert all(isinstance(word, str) for word in words[2:])
    else:
        assert words[-2:] == [4, 5]
        assert {"!3", "!?"} & set(words[2:-2])


def test_loss_across_words_spares_later_words() -> None:
    audio = synthesize_words(range(10, 20), LINE)
    cut = audio[: WORD_BYTES * 2 + 1000] + audio[WORD_BYTES * 5 + 1000 :]  # the same position in 15
    assert words_of(text_of(cut)) == [10, 11, "!12", 16, 17, 18, 19]
    cut = audio[: WORD_BYTES * 2 + 1000] + audio[WORD_BYTES * 5 + 1400 :]
    assert words_of(text_of(cut)) == [10, 11, "!12", 16, 17, 18, 19]


@pytest.mark.parametrize("encoding", sorted(Encoding))
def test_misaligned_audio_is_never_silence(encoding: str) -> None:
    line = AudioFormat(encoding, 8000)
    for slip in range(1, Encoding(encoding).width):
        first, second, *_ = events_of([synthesize_words([1, 2], line)[slip:]], line)
        assert first.kind == "turn.start"
        assert second.transcript == "!?"


def test_misplaced_words_show_by_their_numbers() -> None:
    words = [synthesize_words([number], LINE) for number in range(4)]
    assert words_of(text_of(words[0] + words[2] + words[1] + words[1])) == [0, 2, 1, 1]


def test_noise_is_damaged_word_and_noisy_line_is_silence() -> None:
    noise = np.frombuffer(random.Random(1).randbytes(8000), "<i2").astype(np.float32)
    loud = encode(noise / np.float32(2**15), "pcm_s16le")
    soft = encode(noise / np.float32(2**22), "pcm_s16le")
    assert words_of(
        text_of(loud + synthesize_silence(500, LINE) + synthesize_words([1], LINE))
    ) == ["!?", 1]
    assert kinds_of(events_of([synthesize_words([1], LINE) + soft])) == [
        "start",
        "update",
        "eager_end",
        "end",
    ]
    assert events_of([soft]) == []


def test_truncated_word_is_damaged() -> None:
    audio = synthesize_words([1, 2], LINE)
    assert text_of(audio[:-2]) == "w1 !2"
    assert text_of(audio[: WORD_BYTES + 20]) == "w1 !?"
    assert text_of(b"") == ""


@pytest.mark.parametrize("size", [20, WORD_BYTES // 2, WORD_BYTES - 2])
def test_truncated_word_extends_to_the_end_of_the_audio(size: int) -> None:
    audio = synthesize_words([1, 2], LINE)[: WORD_BYTES + size]
    end = events_of([audio])[-1]
    assert end.kind == "turn.end"
    assert end.words[-1].end_s == pytest.approx(len(audio) / len(synthesize_silence(1_000, LINE)))
    assert end.words[-1].start_s == pytest.approx(WORD_BYTES / len(synthesize_silence(1_000, LINE)))


async def test_delayed_events_keep_order_and_flush_waits() -> None:
    stream, events = opened(engine=ScriptEngine(ScriptOptions(latency_ms=30)))
    await stream.feed(synthesize_words([1], LINE) + synthesize_silence(500, LINE))
    assert events == []
    await stream.feed(synthesize_words([2], LINE))
    await stream.flush()
    assert kinds_of(events) == ["start", "update", "eager_end", "end", "start", "update", "end"]


async def test_close_drops_delayed_events() -> None:
    stream, events = opened(engine=ScriptEngine(ScriptOptions(latency_ms=1)))
    await stream.feed(synthesize_words([1], LINE))
    await stream.aclose()
    await anyio.sleep(0.01)
    assert events == []


async def test_later_connection_rewords_but_keeps_numbers() -> None:
    async def transcript(engine: ScriptEngine) -> str:
        stream, events = opened(engine=engine)
        await stream.feed(synthesize_words(range(50), LINE))
        await stream.flush()
        return events[-1].transcript or ""

    engine = ScriptEngine(ScriptOptions(rewording=3))
    first, second, third = [await transcript(engine) for _ in range(3)]
    assert first == " ".join(f"w{number}" for number in range(50))
    assert len({first, second, third}) == 3
    assert words_of(second) == words_of(third) == list(range(50))
    assert {word.replace(str(n), "") for n, word in enumerate(second.split())} == {"w", "w~", ""}
    again = ScriptEngine(ScriptOptions(rewording=3))
    assert [await transcript(again) for _ in range(3)] == [first, second, third]


@pytest.mark.parametrize("encoding", sorted(Encoding))
def test_word_has_documented_duration(encoding: str) -> None:
    line = AudioFormat(encoding, 16000)
    assert len(synthesize_words([1, 2], line)) == 2 * 3200 * Encoding(encoding).width
    assert len(synthesize_words([1], line, word_ms=50)) == 800 * Encoding(encoding).width
    assert len(synthesize_silence(50, line)) == 800 * Encoding(encoding).width
    with pytest.raises(ValueError, match="fewer than 96 samples"):
        synthesize_words([1], line, word_ms=5)


@pytest.mark.parametrize("name", STYLES)
async def test_text_style_determines_separators(name: str) -> None:
    style = STYLES[name]
    stream, events = opened(engine=ScriptEngine(ScriptOptions(text_style=name)))
    await stream.feed(
        synthesize_words([0, 1], LINE)
        + synthesize_silence(600, LINE)
        + synthesize_words([20], LINE)
        + synthesize_silence(600, LINE)
    )
    texts = [event.transcript or "" for event in events if event.kind == "turn.end"]
    assert texts == [style.text(["w0", "w1"], style.begin), style.text(["w20"], style.later)]
    assert words_of("".join(texts), spaced=style.spaced) == [0, 1, 20], "turns join verbatim"
    order = TurnOrder()
    for event in events:
        order.admit(event)  # no text retracts published text


def test_words_without_separators_are_not_reworded() -> None:
    with pytest.raises(ValueError, match="cannot be reworded"):
        ScriptEngine(ScriptOptions(text_style="none", rewording=1))


def test_words_without_separators_are_parsed() -> None:
    assert words_of("w1w23!?!4w5", spaced=False) == [1, 23, "!?", "!4", 5]


async def test_words_have_the_times_of_their_blocks() -> None:
    stream, events = opened()
    await stream.feed(synthesize_silence(100, LINE) + synthesize_words([1, 2], LINE))
    await stream.feed(synthesize_silence(50, LINE) + synthesize_words([3], LINE)[:-160])
    await stream.flush()
    assert [
        (word.text, word.start_s, word.end_s, word.confidence) for word in events[-1].words
    ] == [
        ("w1", 0.1, 0.3, 1.0),
        ("w2", 0.3, 0.5, 1.0),
        ("!3", 0.55, 0.74, 0.5),
    ]


async def test_report_excludes_an_incomplete_word() -> None:
    stream, events = opened()
    stream.report()
    await stream.feed(synthesize_silence(100, LINE) + synthesize_words([1, 2], LINE)[:-160])
    stream.report()
    await stream.feed(synthesize_words([2], LINE)[-160:])
    stream.report()
    reports = [event for event in events if event.kind == "progress"]
    assert [(event.transcript, event.decoded_s) for event in reports] == [
        ("", 0.0),
        ("w1", 0.3),
        ("w1 w2", 0.5),
    ]


async def test_end_turn_leaves_an_incomplete_word_to_the_next() -> None:
    stream, events = opened()
    await stream.end_turn()
    word = synthesize_words([2], LINE)
    await stream.feed(synthesize_words([1], LINE) + word[:800])
    await stream.end_turn()
    await stream.feed(word[800:])
    assert [(event.kind, event.transcript, event.trigger) for event in events[:4]] == [
        ("progress", "", "manual"),
        ("turn.start", None, "model"),
        ("turn.update", "w1", "model"),
        ("turn.end", "w1", "manual"),
    ]
    assert events[3].decoded_s == 0.2
    assert [(event.kind, event.transcript) for event in events[4:]] == [
        ("turn.start", None),
        ("turn.update", " w2"),
    ]


@pytest.mark.parametrize(
    ("turn", "trigger", "decoded_s"),
    [
        (TurnSettings(), "model", 0.68),
        (TurnSettings(end=0), "timeout", 5.8),
        (TurnSettings(end=0.05, end_timeout_ms=640), "timeout", 0.84),
    ],
)
async def test_end_names_its_trigger(turn: TurnSettings, trigger: str, decoded_s: float) -> None:
    stream, events = opened(turn=turn)
    await stream.feed(synthesize_words([1], LINE) + synthesize_silence(6_000, LINE))
    assert (events[-1].kind, events[-1].trigger) == ("turn.end", trigger)
    assert events[-1].decoded_s == decoded_s
