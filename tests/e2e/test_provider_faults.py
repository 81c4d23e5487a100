"""Every fault the local server can inject: no word is lost or transcribed twice."""

import json
import logging

import anyio
import pytest

from schemas.turns import AudioGap, Event, SessionError, TurnEnd, TurnUpdate
from tests.support.harness import PCM16, WORD, Harness, check_order, kinds, words
from worker.local.emulator.engines.script import (
    ScriptEngine,
    ScriptOptions,
    synthesize_silence,
    synthesize_words,
)
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.session import connection
from worker.session.receiver import MAX_FLUSH_ATTEMPTS

ONCE = [
    "cut@handshake",
    "cut=fin@handshake",
    "cut@opened",
    "cut@mid-turn",
    "cut=fin@mid-turn",
    "cut@between-turns",
    "cut@flush",
    "cut@flushed",
    "cut@bytes=16001",
    pytest.param("half-open@mid-turn", marks=pytest.mark.slow),  # its pings are tested below
    "close=1011@mid-turn",
    "close=1012@between-turns",
    "close=1000@mid-turn",
    "error=500@mid-turn",
    "error=500@opened",
    "error=400:open@mid-turn",
    "error=401@mid-turn",
    "error=402@mid-turn",
    "error=402@flush",
    "error=429:open@between-turns",
    "http=500",
    "http=503",
    "http=429",
    "http=401",
    "http=402",
    "http=403",
    "connected=late:2s:deaf",
]
"""Faults that affect one connection."""

HABITS = ["duplicate", "shrink", "slow-read=40k/s", "pace=2.0"]
"""Faults that affect every connection."""


async def _play(harness: Harness) -> None:
    sound = (
        synthesize_words([0, 1, 2], PCM16)
        + synthesize_silence(900, PCM16)
        + synthesize_words([3, 4], PCM16)
        + synthesize_silence(300, PCM16)
    )
    await harness.play("call-1", sound)


@pytest.mark.parametrize("fault", ONCE)
async def test_fault_of_one_connection_loses_nothing(
    harness: Harness, stt: TurnsServer, fault: str
) -> None:
    stt.faults.set(f"{fault},count=1")
    async with harness.worker():
        await harness.announce("call-1")
        await _play(harness)
        events = (await harness.until_ended("call-1"))["call-1"]
    assert [applied.connections for applied in stt.state().faults] == [1], (
        "the fault was never injected"
    )
    check_order(events)
    assert words(events) == [0, 1, 2, 3, 4]
    assert not any(event.fatal for event in events if isinstance(event, SessionError))


@pytest.mark.parametrize("fault", HABITS)
async def test_fault_of_every_connection_ends_the_session(
    harness: Harness, stt: TurnsServer, fault: str
) -> None:
    stt.faults.set(fault)
    async with harness.worker():
        await harness.announce("call-1")
        await _play(harness)
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [0, 1, 2, 3, 4]


async def test_repeated_cuts_lose_nothing(harness: Harness, stt: TurnsServer) -> None:
    stt.faults.set("cut@mid-turn,count=2", "cut@between-turns,count=1", "cut@flush,count=2")
    async with harness.worker():
        await harness.announce("call-1")
        await _play(harness)
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [0, 1, 2, 3, 4]
    assert events[-1].connection == 6


async def test_half_open_socket_is_detected_by_pings(
    harness: Harness, stt: TurnsServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stt.faults.set("half-open@between-turns,count=1")
    async with harness.worker():
        await harness.announce("call-1")
        await harness.play(
            "call-1", synthesize_words([0, 1], PCM16) + synthesize_silence(900, PCM16), end=False
        )
        # The fault sends nothing at all, so no other timeout runs while the session lasts.
        await harness.play(
            "call-1", synthesize_words([2, 3], PCM16) + synthesize_silence(900, PCM16), end=False
        )
        await harness.until("call-1", TurnEnd, count=2)
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [0, 1, 2, 3]
    assert events[-1].connection == 2
    (lost,) = [line for line in caplog.messages if "socket lost" in line]
    assert "no answer to a ping" in lost


async def test_provider_outage_loses_nothing(harness: Harness, stt: TurnsServer) -> None:
    async with harness.worker(), anyio.create_task_group() as tasks:
        await harness.announce("call-1")
        tasks.start_soon(_play, harness)
        await harness.until("call-1", TurnEnd)
        async with stt.outage():
            stt.cut_all()
            await harness.until("call-1", SessionError)
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [0, 1, 2, 3, 4]
    assert kinds(events).count("session.error") == 1


@pytest.mark.parametrize(
    "fault", ["http=400", "http=404", "error=400@opened", "close=1008@mid-turn"]
)
async def test_permanent_rejection_ends_the_session(
    harness: Harness, stt: TurnsServer, fault: str
) -> None:
    stt.faults.set(fault)
    await harness.play("call-1", synthesize_words([0, 1, 2], PCM16), pause_s=0)
    async with harness.worker():
        await harness.announce("call-1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    errors = [event for event in events if isinstance(event, SessionError)]
    assert [error.fatal for error in errors] == [True]
    (dead,) = await harness.dead()
    assert dead[b"session"] == b"call-1"


async def test_key_terms_that_make_the_url_too_long(harness: Harness) -> None:
    """The maximum number of key terms, whose letters take nine bytes each in the URL."""
    async with harness.worker():
        await harness.announce("call-1", keyterms=json.dumps(["\u8a9e" * 12] * 100))
        await harness.append("call-1", audio=synthesize_words([1], PCM16), end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    errors = [event for event in events if isinstance(event, SessionError)]
    assert [(error.status, error.fatal) for error in errors] == [(414, True)]


async def test_settings_rejected_earlier_do_not_end_the_session(
    harness: Harness, stt: TurnsServer
) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        await harness.play(
            "call-1",
            synthesize_words([1], PCM16) + synthesize_silence(800, PCM16),
            pause_s=0,
            end=False,
        )
        # Valid on its own, but not together with the provider's default `end` of 0.3.
        await harness.append("call-1", config='{"turn_eager_end_threshold":0.3}')
        await harness.play(
            "call-1",
            synthesize_words([2], PCM16) + synthesize_silence(800, PCM16),
            pause_s=0,
            end=False,
        )
        refused = await harness.until("call-1", SessionError)
        await harness.until("call-1", TurnEnd, 2)
        stt.cut_all()
        dropped = await harness.until("call-1", SessionError, 2)
        await harness.play("call-1", synthesize_words([3], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [1, 2, 3]
    assert (refused.fatal, dropped.fatal, dropped.status) == (False, False, 400)
    assert dropped.message.startswith("turn settings changed since the session began are dropped: ")


async def test_settings_rejected_at_the_end_lose_no_word(
    harness: Harness, stt: TurnsServer
) -> None:
    """The provider rejects them after the worker has requested the flush."""
    async with harness.worker():
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16), end=False)
        await harness.until("call-1", TurnUpdate)
        settings = '{"turn_eager_end_threshold":0.3}'
        await harness.append("call-1", audio=synthesize_words([2], PCM16), config=settings, end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]
    (refused,) = [event for event in events if isinstance(event, SessionError)]
    assert (refused.status, refused.fatal) == (400, False)
    assert len(stt.connections) == 1


async def _play_a_word_and_end(harness: Harness) -> list[Event]:
    async with harness.worker():
        await harness.announce("call-1")
        await harness.append("call-1", audio=synthesize_words([1], PCM16))
        await harness.until("call-1", TurnUpdate)
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1]
    return events


@pytest.mark.parametrize("how", ["error=400", "error=400:open", "error=400:1012"])
async def test_rejected_flush(harness: Harness, stt: TurnsServer, how: str) -> None:
    stt.faults.set(f"{how}@flush")
    events = await _play_a_word_and_end(harness)
    assert [event.fatal for event in events if isinstance(event, SessionError)] == [False]
    assert len(stt.connections) == 1


async def test_audio_of_a_rejected_flush_is_announced(harness: Harness, stt: TurnsServer) -> None:
    """The second word is only half sent when the worker requests the flush, which is rejected."""
    stt.faults.set("error=400@flush")
    async with harness.worker():
        await harness.announce("call-1")
        await harness.append("call-1", audio=synthesize_words([1], PCM16))
        await harness.until("call-1", TurnUpdate)
        await harness.append("call-1", audio=synthesize_words([2], PCM16)[: WORD // 2], end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1]
    (gap,) = [event for event in events if isinstance(event, AudioGap)]
    assert (gap.missing_ms, gap.reason) == (100, "watchdog")


async def test_rejection_at_real_time_is_not_blamed_on_the_pace(
    harness: Harness, stt: TurnsServer
) -> None:
    """The first rejection follows a backlog sent faster than real time. The next is published."""
    stt.faults.set("error=400:open@bytes=48000")
    await harness.play("call-1", synthesize_words(range(16), PCM16), pause_s=0, end=False)
    async with harness.worker():
        await harness.announce("call-1")
        error = await harness.until("call-1", SessionError)
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert (error.status, error.fatal) == (400, False)
    assert words(events) == list(range(16))
    assert len(stt.connections) == 2


async def test_settings_rejected_in_catch_up_keep_its_pace(
    harness: Harness, stt: TurnsServer
) -> None:
    await harness.append("call-1", config='{"turn_eager_end_threshold":0.3}')
    await harness.play("call-1", synthesize_words(range(16), PCM16), pause_s=0)
    async with harness.worker():
        await harness.announce("call-1")
        events = (await harness.until_ended("call-1"))["call-1"]
    (error,) = [event for event in events if isinstance(event, SessionError)]
    assert (error.status, error.fatal) == (400, False)
    assert words(events) == list(range(16))
    _, replay = stt.connections
    assert replay.pace.mean is not None
    assert replay.pace.mean > 1.2, "at real time the session would never catch up"


async def test_provider_that_ignores_the_flush(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers pings and sends no message, so the state of the words is unknown."""
    monkeypatch.setattr(connection, "FLUSH_TIMEOUT_S", 0.5)
    mute = ScriptEngine(ScriptOptions(latency_ms=60_000))
    async with (
        TurnsServer.serve(ServerSettings(port=0), mute) as provider,
        harness.worker(stt_url=provider.url),
    ):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1, 2, 3], PCM16), pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
    assert kinds(events) == ["session.started", "audio.gap", "session.ended"]
    (gap,) = [event for event in events if isinstance(event, AudioGap)]
    assert (gap.missing_ms, gap.reason) == (600, "watchdog")
    assert len(provider.connections) == MAX_FLUSH_ATTEMPTS


async def test_provider_that_fails_at_each_flush(harness: Harness, stt: TurnsServer) -> None:
    stt.faults.set("error=500@flush")
    events = await _play_a_word_and_end(harness)
    assert any(isinstance(event, AudioGap) for event in events), "the rest of the text is unknown"
    assert len(stt.connections) == MAX_FLUSH_ATTEMPTS


async def test_cuts_are_not_counted_as_answers_to_a_flush(
    harness: Harness, stt: TurnsServer
) -> None:
    stt.faults.set(f"cut@flush,count={MAX_FLUSH_ATTEMPTS + 1}")
    async with harness.worker():
        await harness.announce("call-1")
        await harness.append("call-1", audio=synthesize_words([1], PCM16), end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert kinds(events).count("audio.gap") == 0
    assert words(events) == [1]


async def test_speech_that_is_not_answered_is_sent_again(
    harness: Harness, stt: TurnsServer
) -> None:
    """The provider is stuck between turns: it answers pings, and no speech."""
    stt.faults.set("stall@bytes=40000,count=1")
    sound = synthesize_silence(1_500, PCM16)
    for at in range(24):
        sound += synthesize_words([2 * at, 2 * at + 1], PCM16) + synthesize_silence(250, PCM16)
    async with harness.worker():
        await harness.announce("call-1")
        await harness.play("call-1", sound)
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    errors = [event.code for event in events if isinstance(event, SessionError)]
    assert errors == ["stt_silent"]
    assert words(events) == [*range(48)]
    assert events[-1].connection == 2
