"""Sessions at provider flux: turns with times, commands on one socket, lost sockets and workers."""

import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import pytest

from schemas.turns import (
    Event,
    SessionEnded,
    SessionError,
    SessionStarted,
    TurnEnd,
    TurnStart,
    TurnUpdate,
)
from tests.support.harness import FLUX_KEY, KEY, PCM16, WORD, Harness, check_order, kinds, words
from tests.support.watchers import seen_alive
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import (
    ScriptEngine,
    ScriptOptions,
    synthesize_silence,
    synthesize_words,
)
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import FluxSettings, ServerSettings
from worker.session import connection


@pytest.fixture
def flux() -> FluxSettings:
    """Return how the local server behaves. Tests parametrize it."""
    return FluxSettings()


@pytest.fixture
async def stt(flux: FluxSettings) -> AsyncIterator[TurnsServer]:
    """Run the local server as flux, with a latency of 150 ms."""
    settings = ServerSettings(
        port=0, provider="flux", flux=flux, api_keys=frozenset({KEY, FLUX_KEY})
    )
    async with TurnsServer.serve(settings, ScriptEngine(ScriptOptions(latency_ms=150))) as server:
        yield server


def speech(*turns: Sequence[int], audio: AudioFormat = PCM16) -> bytes:
    silence = synthesize_silence(1_200, audio)
    return b"".join(synthesize_words(turn, audio) + silence for turn in turns)


def ends(events: Sequence[Event]) -> list[tuple[list[int | str], str]]:
    return [(words([event]), event.reason) for event in events if isinstance(event, TurnEnd)]


@pytest.mark.parametrize(
    "flux", [FluxSettings(), FluxSettings(word_times=False), FluxSettings(throttle=1.25)], ids=repr
)
async def test_session_has_the_words_and_turns(harness: Harness) -> None:
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1")
        await harness.play("call-1", speech(range(4), range(4, 9)))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert ends(events) == [([*range(4)], "model"), ([*range(4, 9)], "model")]
    assert {event.provider for event in events} == {"flux"}
    assert events[-1].connection == 1
    assert "session.error" not in kinds(events)


@pytest.mark.parametrize("flux", [FluxSettings(), FluxSettings(trigger=False)], ids=repr)
async def test_forced_end_needs_no_new_socket(harness: Harness, stt: TurnsServer) -> None:
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words(range(3), PCM16), end=False)
        await harness.append("call-1", turn_end="1")
        await harness.play("call-1", synthesize_words(range(3, 6), PCM16), end=False)
        await harness.append("call-1", turn_end="1")
        await harness.append("call-1", turn_end="1")  # ends nothing
        await harness.play("call-1", synthesize_words([6], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert ends(events) == [([0, 1, 2], "forced"), ([3, 4, 5], "forced"), ([6], "close")]
    assert events[-1].connection == 1
    assert len(stt.connections) == 1
    assert "session.error" not in kinds(events)


@pytest.mark.parametrize("flux", [FluxSettings(force_end_turn=False)], ids=repr)
async def test_deployment_without_the_command_gets_new_sockets(harness: Harness) -> None:
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words(range(3), PCM16), end=False)
        await harness.append("call-1", turn_end="1")
        await harness.play("call-1", synthesize_words(range(3, 6), PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert ends(events) == [([0, 1, 2], "forced"), ([3, 4, 5], "close")]


IGNORED = "ignore=ForceEndTurn"
"""Without `no-turn-end`, the provider ends the turn itself, after some silence."""


@pytest.mark.parametrize(
    ("faults", "sockets"),
    [
        ([IGNORED], 1),
        (["lose=turn.end"], 1),
        (["no-turn-end"], 2),
        ([IGNORED, "no-turn-end"], 2),
    ],
)
async def test_forced_end_without_an_answer_ends_the_turn(
    harness: Harness, stt: TurnsServer, faults: list[str], sockets: int
) -> None:
    """If the provider is still inside the turn, the next one needs another socket."""
    stt.faults.set(*faults)
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words(range(3), PCM16), end=False)
        await harness.append("call-1", turn_end="1")
        await harness.play("call-1", synthesize_words(range(3, 6), PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert ends(events) == [([0, 1, 2], "forced"), ([3, 4, 5], "close")]
    assert not {"session.error", "audio.gap"} & {*kinds(events)}
    assert events[-1].connection == sockets


async def test_close_without_an_answer_to_the_command_ends_the_turn(
    harness: Harness, stt: TurnsServer
) -> None:
    stt.faults.set(IGNORED, "no-turn-end")
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words(range(5), PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert ends(events) == [([*range(5)], "close")]
    assert not {"session.error", "audio.gap"} & {*kinds(events)}
    assert len(stt.connections) == 1


async def test_end_of_a_session_ends_its_open_turn(harness: Harness) -> None:
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words(range(5), PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert ends(events) == [([*range(5)], "close")]


async def test_lost_sockets_lose_and_repeat_no_word(harness: Harness, stt: TurnsServer) -> None:
    stt.faults.set("cut@mid-turn,count=3", seed=1)
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1")
        await harness.play("call-1", speech(range(6), range(6, 10), range(10, 16)))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*range(16)]
    assert events[-1].connection > 1


async def test_words_have_times_over_all_sockets(harness: Harness, stt: TurnsServer) -> None:
    """Times are those of the session's audio, whatever was sent again."""
    stt.faults.set("cut@mid-turn,count=2", seed=1)
    sound = synthesize_silence(500, PCM16) + speech(range(6), range(6, 8))
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1", words="1")
        await harness.announce("call-2")
        await harness.play("call-1", sound)
        await harness.play("call-2", sound, pause_s=0)
        both = await harness.until_ended("call-1", "call-2")
    word_ms = WORD / PCM16.bytes_per_s * 1_000
    begins = [500 + word_ms * at for at in range(6)]
    begins += [begins[-1] + word_ms + 1_200 + word_ms * at for at in range(2)]
    for events in both.values():
        turns = [event for event in events if isinstance(event, TurnEnd)]
        times = [time for turn in turns for time in (turn.start_ms, turn.end_ms)]
        expected = [begins[0], begins[5] + word_ms, begins[6], begins[7] + word_ms]
        assert times == pytest.approx(expected, abs=2)
    listed = [
        word
        for event in both["call-1"]
        if isinstance(event, TurnEnd) and event.words
        for word in event.words
    ]
    assert [word.w for word in listed] == [f"w{at}" for at in range(8)]
    assert [word.start_ms for word in listed] == pytest.approx(begins, abs=2)
    assert all(not event.words for event in both["call-2"] if isinstance(event, TurnEnd))


async def test_usage_is_that_of_all_sockets(harness: Harness, stt: TurnsServer) -> None:
    stt.faults.set("cut@mid-turn,count=1", seed=1)
    sound = speech(range(6), range(6, 8))
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1")
        await harness.play("call-1", sound)
        (*_, ended) = (await harness.until_ended("call-1"))["call-1"]
    assert isinstance(ended, SessionEnded)
    assert isinstance(ended.usage, dict)
    usage = ended.usage["flux"]
    assert usage.sockets == 2
    assert usage.replayed_s > 0
    assert usage.audio_s - usage.replayed_s == pytest.approx(len(sound) / PCM16.bytes_per_s)
    assert usage.filler_s > 0, "silence proves that the last audio was transcribed"
    assert usage.socket_s > usage.audio_s / 2


@pytest.mark.parametrize(
    "fault",
    [
        "duplicate",
        "shrink",
        "reorder",
        "window-jitter=200ms",
        "error=500@mid-turn,count=1",
        "close=1011@mid-turn,count=1",
        "close=none@mid-turn,count=1",
        "cut@between-turns,count=1",
        "cut@flush,count=1",
        "stall@flush,count=1",
        "cut@sent=3000,count=2",
    ],
)
async def test_faulty_provider_loses_and_repeats_no_word(
    harness: Harness, stt: TurnsServer, fault: str
) -> None:
    stt.faults.set(fault, seed=1)
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1")
        await harness.play("call-1", speech(range(4), range(4, 7)), end=False)
        await harness.play("call-1", synthesize_words(range(7, 10), PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*range(10)]
    texts = [
        (event.turn, len(event.transcript)) for event in events if isinstance(event, TurnUpdate)
    ]
    assert texts == sorted(texts), "no update is shorter"


async def test_stuck_socket_is_replaced(harness: Harness, stt: TurnsServer) -> None:
    stt.faults.set("stall@mid-turn,count=1", seed=1)
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1")
        await harness.play("call-1", speech(range(12), range(12, 15)))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*range(15)]
    assert events[-1].connection == 2


@pytest.mark.parametrize("lost", ["turn.end", "turn.start", "turn.start:turn.end"])
async def test_lost_message_costs_no_word(harness: Harness, stt: TurnsServer, lost: str) -> None:
    """The next message shows what it was."""
    stt.faults.set(f"lose={lost}")
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1", words="1")
        await harness.play("call-1", speech(range(4), range(4, 7)), end=False)
        await harness.append("call-1", turn_end="1")  # ends nothing
        await harness.play("call-1", synthesize_words(range(7, 10), PCM16), end=False)
        await harness.append("call-1", turn_end="1")
        await harness.play("call-1", synthesize_words([10], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert ends(events) == [
        ([*range(4)], "model"),
        ([*range(4, 7)], "model"),
        ([7, 8, 9], "forced"),
        ([10], "close"),
    ]
    listed = [event.words for event in events if isinstance(event, TurnEnd)]
    assert [len(each or ()) for each in listed] == [4, 3, 3, 1]
    assert events[-1].connection == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_lost_worker_loses_and_repeats_no_word(
    harness: Harness, tmp_path: Path, number: signal.Signals
) -> None:
    async with (
        harness.worker_process("one", tmp_path / "one", stt_providers="flux") as first,
        anyio.create_task_group() as tasks,
    ):
        await harness.announce("call-1")
        await harness.until("call-1", SessionStarted)
        async with harness.worker_process("two", tmp_path / "two", stt_providers="flux"):
            await seen_alive([harness.redis], harness.prefix, 2)
            sound = speech(range(3), range(3, 9), range(9, 12))
            tasks.start_soon(harness.play, "call-1", sound)
            await harness.until("call-1", TurnStart, 2)
            first.send_signal(number)
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*range(12)]
    assert "session.error" not in kinds(events)


@pytest.mark.parametrize("moment", ["before", "at", "after"])
async def test_sigkill_around_a_forced_end_loses_nothing(
    harness: Harness, tmp_path: Path, moment: str
) -> None:
    async with harness.worker_process("one", tmp_path / "one", stt_providers="flux") as first:
        await harness.announce("call-1")
        await harness.until("call-1", SessionStarted)
        async with harness.worker_process("two", tmp_path / "two", stt_providers="flux"):
            await seen_alive([harness.redis], harness.prefix, 2)
            await harness.play("call-1", synthesize_words(range(3), PCM16), end=False)
            if moment == "before":
                first.send_signal(signal.SIGKILL)
            await harness.append("call-1", turn_end="1")
            if moment == "after":
                await harness.until("call-1", TurnEnd)
            first.send_signal(signal.SIGKILL)
            await harness.play("call-1", synthesize_words([3, 4], PCM16))
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert ends(events) == [([0, 1, 2], "forced"), ([3, 4], "close")]
    assert "session.error" not in kinds(events)


@pytest.mark.parametrize(
    "audio",
    [AudioFormat("pcm_mulaw", 8_000), AudioFormat("pcm_f32le", 48_000)],
    ids=lambda audio: audio.encoding,
)
async def test_other_encodings_have_the_words(harness: Harness, audio: AudioFormat) -> None:
    sound = speech(range(4), audio=audio)
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1", audio)
        await harness.play("call-1", sound, sizes=(audio.bytes_per_s // 10,))
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [*range(4)]


async def test_end_of_a_session_waits_for_a_late_provider(
    harness: Harness, flux: FluxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It transcribes all the time, but later than the timeout of the flush."""
    monkeypatch.setattr(connection, "FLUSH_TIMEOUT_S", 0.7)
    settings = ServerSettings(
        port=0, provider="flux", flux=flux, api_keys=frozenset({KEY, FLUX_KEY})
    )
    late = ScriptEngine(ScriptOptions(latency_ms=1_500))
    async with (
        TurnsServer.serve(settings, late) as server,
        harness.worker(stt_providers="flux", stt_flux_url=server.url),
    ):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words(range(12), PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert ends(events) == [([*range(12)], "close")]
    assert events[-1].connection == 1
    assert "session.error" not in kinds(events)


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "rate": ({"sample_rate": "22050"}, "flux takes 8000, 16000, 24000, 44100, 48000"),
    "provider": ({"provider": "cartesia"}, "configured: flux"),
    "model": ({"model": "flux-general-xx"}, "model"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_session_that_flux_cannot_serve_is_refused(harness: Harness, case: str) -> None:
    fields, line = REFUSED[case]
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1", PCM16, **fields)
        await harness.append("call-1", audio=bytes(3_200))
        events = (await harness.until_ended("call-1"))["call-1"]
    (error,) = [event for event in events if isinstance(event, SessionError)]
    assert error.fatal
    assert line in error.message


async def test_threshold_out_of_range_is_reported(harness: Harness) -> None:
    async with harness.worker(stt_providers="flux"):
        await harness.announce("call-1", turn_eager_end_threshold="0.75")
        await harness.play("call-1", speech(range(3)), end=False)
        await harness.until("call-1", TurnEnd)
        await harness.append("call-1", config='{"turn_end_threshold":0.2}', end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [*range(3)]
    (error,) = [event for event in events if isinstance(event, SessionError)]
    assert (error.code, error.fatal) == ("config_unusable", False)
    assert "0.7 at most" in error.message


async def test_thresholds_of_fleet_and_session_fit_together(harness: Harness) -> None:
    """Together they would put the eager end above the end, which the provider rejects."""
    async with harness.worker(stt_providers="flux", stt_turn_end_threshold=0.5):
        await harness.announce("call-1", turn_eager_end_threshold="0.4")
        await harness.play("call-1", speech(range(3)), end=False)
        await harness.until("call-1", TurnEnd)
        await harness.append("call-1", config='{"turn_eager_end_threshold":0.35}', end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [*range(3)]
    assert "session.error" not in kinds(events)
