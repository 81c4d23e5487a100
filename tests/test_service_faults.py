"""Every fault of the service that can be ordered, ordered: no word is lost, none said twice."""

import json
import logging

import anyio
import pytest

from schemas.turns import AudioGap, SessionError, TurnEnd, TurnEvent, TurnUpdate
from tests.stage import PCM16, WORD, Stage, check_order, kinds, words
from worker.local.engines.script import ScriptEngine, ScriptOptions, hush, say
from worker.local.server.server import TurnsServer
from worker.local.server.settings import ServerSettings
from worker.sessions import conversation
from worker.sessions.upkeep import FLUSH_ROUNDS

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
    pytest.param("half-open@mid-turn", marks=pytest.mark.slow),  # its pulse is looked at below
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
"""Faults that strike one connection."""

HABITS = ["duplicate", "shrink", "slow-read=40k/s", "pace=2.0"]
"""Faults of every connection."""


async def _play(stage: Stage) -> None:
    sound = say([0, 1, 2], PCM16) + hush(900, PCM16) + say([3, 4], PCM16) + hush(300, PCM16)
    await stage.play("call-1", sound)


@pytest.mark.parametrize("fault", ONCE)
async def test_a_fault_that_strikes_once(stage: Stage, stt: TurnsServer, fault: str) -> None:
    stt.faults.set(f"{fault},count=1")
    async with stage.worker():
        await stage.announce("call-1")
        await _play(stage)
        events = (await stage.until_ended("call-1"))["call-1"]
    assert [applied.connections for applied in stt.state().faults] == [1], "it never struck"
    check_order(events)
    assert words(events) == [0, 1, 2, 3, 4]
    assert not any(event.fatal for event in events if isinstance(event, SessionError))


@pytest.mark.parametrize("fault", HABITS)
async def test_a_fault_that_never_stops(stage: Stage, stt: TurnsServer, fault: str) -> None:
    stt.faults.set(fault)
    async with stage.worker():
        await stage.announce("call-1")
        await _play(stage)
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [0, 1, 2, 3, 4]


async def test_cuts_again_and_again(stage: Stage, stt: TurnsServer) -> None:
    stt.faults.set("cut@mid-turn,count=2", "cut@between-turns,count=1", "cut@flush,count=2")
    async with stage.worker():
        await stage.announce("call-1")
        await _play(stage)
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [0, 1, 2, 3, 4]
    assert events[-1].connection == 6


async def test_a_half_open_socket_is_known_by_its_pulse(
    stage: Stage, stt: TurnsServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stt.faults.set("half-open@between-turns,count=1")
    async with stage.worker():
        await stage.announce("call-1")
        await stage.play("call-1", say([0, 1], PCM16) + hush(900, PCM16), end=False)
        # Nothing is refused and nothing is said: no other deadline runs while the session lasts.
        await stage.play("call-1", say([2, 3], PCM16) + hush(900, PCM16), end=False)
        await stage.until("call-1", TurnEnd, count=2)
        await stage.append("call-1", end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [0, 1, 2, 3]
    assert events[-1].connection == 2
    (lost,) = [line for line in caplog.messages if "socket lost" in line]
    assert "no answer to a ping" in lost


async def test_an_outage_of_the_service(stage: Stage, stt: TurnsServer) -> None:
    async with stage.worker(), anyio.create_task_group() as tasks:
        await stage.announce("call-1")
        tasks.start_soon(_play, stage)
        await stage.until("call-1", TurnEnd)
        async with stt.outage():
            stt.cut_all()
            await stage.until("call-1", SessionError)
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [0, 1, 2, 3, 4]
    assert kinds(events).count("session.error") == 1


@pytest.mark.parametrize(
    "fault", ["http=400", "http=404", "error=400@opened", "close=1008@mid-turn"]
)
async def test_a_refusal_for_good(stage: Stage, stt: TurnsServer, fault: str) -> None:
    stt.faults.set(fault)
    await stage.play("call-1", say([0, 1, 2], PCM16), pause_s=0)
    async with stage.worker():
        await stage.announce("call-1")
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    errors = [event for event in events if isinstance(event, SessionError)]
    assert [error.fatal for error in errors] == [True]
    (dead,) = await stage.dead()
    assert dead[b"session"] == b"call-1"


async def test_key_terms_that_make_the_url_too_long(stage: Stage) -> None:
    """As many as there may be, in a script of which each letter takes nine bytes of it."""
    async with stage.worker():
        await stage.announce("call-1", keyterms=json.dumps(["\u8a9e" * 12] * 100))
        await stage.append("call-1", audio=say([1], PCM16), end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    errors = [event for event in events if isinstance(event, SessionError)]
    assert [(error.status, error.fatal) for error in errors] == [(414, True)]


async def test_settings_refused_on_the_way_do_not_end_the_session_later(
    stage: Stage, stt: TurnsServer
) -> None:
    async with stage.worker():
        await stage.announce("call-1")
        await stage.play("call-1", say([1], PCM16) + hush(800, PCM16), pause_s=0, end=False)
        # In order by itself; with the service's own `end` of 0.3 it is not.
        await stage.append("call-1", config='{"turn_eager_end_threshold":0.3}')
        await stage.play("call-1", say([2], PCM16) + hush(800, PCM16), pause_s=0, end=False)
        refused = await stage.until("call-1", SessionError)
        await stage.until("call-1", TurnEnd, 2)
        stt.cut_all()
        dropped = await stage.until("call-1", SessionError, 2)
        await stage.play("call-1", say([3], PCM16))
        events = (await stage.until_ended("call-1"))["call-1"]
    assert words(events) == [1, 2, 3]
    assert (refused.fatal, dropped.fatal, dropped.status) == (False, False, 400)
    assert dropped.message.startswith("turn settings given since the session began are dropped: ")


async def test_settings_refused_as_the_session_ends_cost_no_word(
    stage: Stage, stt: TurnsServer
) -> None:
    """The refusal comes when the service was asked for the rest already."""
    async with stage.worker():
        await stage.announce("call-1")
        await stage.play("call-1", say([1], PCM16), end=False)
        await stage.until("call-1", TurnUpdate)
        settings = '{"turn_eager_end_threshold":0.3}'
        await stage.append("call-1", audio=say([2], PCM16), config=settings, end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]
    (refused,) = [event for event in events if isinstance(event, SessionError)]
    assert (refused.status, refused.fatal) == (400, False)
    assert len(stt.connections) == 1


async def _say_a_word_and_end(stage: Stage) -> list[TurnEvent]:
    async with stage.worker():
        await stage.announce("call-1")
        await stage.append("call-1", audio=say([1], PCM16))
        await stage.until("call-1", TurnUpdate)
        await stage.append("call-1", end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1]
    return events


@pytest.mark.parametrize("how", ["error=400", "error=400:open", "error=400:1012"])
async def test_a_flush_that_is_refused(stage: Stage, stt: TurnsServer, how: str) -> None:
    stt.faults.set(f"{how}@flush")
    events = await _say_a_word_and_end(stage)
    assert [event.fatal for event in events if isinstance(event, SessionError)] == [False]
    assert len(stt.connections) == 1


async def test_audio_of_a_refused_flush_is_announced(stage: Stage, stt: TurnsServer) -> None:
    """The second word is only half sent as the provider is asked for it, and refuses."""
    stt.faults.set("error=400@flush")
    async with stage.worker():
        await stage.announce("call-1")
        await stage.append("call-1", audio=say([1], PCM16))
        await stage.until("call-1", TurnUpdate)
        await stage.append("call-1", audio=say([2], PCM16)[: WORD // 2], end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1]
    (gap,) = [event for event in events if isinstance(event, AudioGap)]
    assert (gap.missing_ms, gap.reason) == (100, "watchdog")


async def test_a_refusal_at_real_time_is_not_one_of_the_pace(
    stage: Stage, stt: TurnsServer
) -> None:
    """The first, of a backlog sent faster, is; the same again is told, and the session goes on."""
    stt.faults.set("error=400:open@bytes=48000")
    await stage.play("call-1", say(range(16), PCM16), pause_s=0, end=False)
    async with stage.worker():
        await stage.announce("call-1")
        told = await stage.until("call-1", SessionError)
        await stage.append("call-1", end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    assert (told.status, told.fatal) == (400, False)
    assert words(events) == list(range(16))
    assert len(stt.connections) == 2


async def test_settings_refused_while_catching_up_do_not_slow_it_down(
    stage: Stage, stt: TurnsServer
) -> None:
    await stage.append("call-1", config='{"turn_eager_end_threshold":0.3}')
    await stage.play("call-1", say(range(16), PCM16), pause_s=0)
    async with stage.worker():
        await stage.announce("call-1")
        events = (await stage.until_ended("call-1"))["call-1"]
    (told,) = [event for event in events if isinstance(event, SessionError)]
    assert (told.status, told.fatal) == (400, False)
    assert words(events) == list(range(16))
    _, replay = stt.connections
    assert replay.pace.mean is not None
    assert replay.pace.mean > 1.2, "at real time it would stay as late as it was, for all of a call"


async def test_a_service_that_flushes_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers pings, and says nothing: what it did with the words is not known."""
    monkeypatch.setattr(conversation, "FLUSH_DEADLINE_S", 0.5)
    mute = ScriptEngine(ScriptOptions(latency_ms=60_000))
    async with (
        TurnsServer.serve(ServerSettings(port=0), mute) as service,
        stage.worker(stt_url=service.url),
    ):
        await stage.announce("call-1")
        await stage.play("call-1", say([1, 2, 3], PCM16), pause_s=0)
        events = (await stage.until_ended("call-1"))["call-1"]
    assert kinds(events) == ["session.started", "audio.gap", "session.ended"]
    (gap,) = [event for event in events if isinstance(event, AudioGap)]
    assert (gap.missing_ms, gap.reason) == (600, "watchdog")
    assert len(service.connections) == FLUSH_ROUNDS


async def test_a_service_that_fails_at_each_flush(stage: Stage, stt: TurnsServer) -> None:
    stt.faults.set("error=500@flush")
    events = await _say_a_word_and_end(stage)
    assert any(isinstance(event, AudioGap) for event in events), "nobody knows what else there was"
    assert len(stt.connections) == FLUSH_ROUNDS


async def test_cuts_do_not_count_as_answers_to_a_flush(stage: Stage, stt: TurnsServer) -> None:
    stt.faults.set(f"cut@flush,count={FLUSH_ROUNDS + 1}")
    async with stage.worker():
        await stage.announce("call-1")
        await stage.append("call-1", audio=say([1], PCM16), end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    assert kinds(events).count("audio.gap") == 0
    assert words(events) == [1]
