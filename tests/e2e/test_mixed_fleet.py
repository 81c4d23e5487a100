"""Workers with different providers: each session is served by those that can serve it."""

import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from schemas.turns import SessionEnded, SessionError, TurnEnd, TurnStart, TurnUpdate
from tests.support.harness import FLUX_KEY, KEY, PCM16, Harness, check_order, words
from tests.support.polling import eventually
from worker.local.emulator.engines.script import (
    ScriptEngine,
    ScriptOptions,
    synthesize_silence,
    synthesize_words,
)
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings

SOUND = (
    synthesize_words(range(30), PCM16)
    + synthesize_silence(1_200, PCM16)
    + synthesize_words(range(30, 34), PCM16)
)


@pytest.fixture
async def flux() -> AsyncIterator[TurnsServer]:
    """Run a second local server, as flux."""
    settings = ServerSettings(port=0, provider="flux", api_keys=frozenset({KEY, FLUX_KEY}))
    async with TurnsServer.serve(settings, ScriptEngine(ScriptOptions(latency_ms=150))) as server:
        yield server


async def test_takeover_continues_at_a_provider_of_the_new_worker(
    harness: Harness, flux: TurnsServer, tmp_path: Path
) -> None:
    """The session names no provider, so any may serve it."""
    settings = {"stt_providers": "flux", "stt_flux_url": flux.url}
    async with (
        harness.worker_process("one", tmp_path / "one", **settings) as first,
        anyio.create_task_group() as tasks,
    ):
        await harness.announce("call-1")
        tasks.start_soon(harness.play, "call-1", SOUND)
        await harness.until("call-1", TurnUpdate, 5)
        first.send_signal(signal.SIGKILL)
        async with harness.worker(stt_providers="cartesia"):
            events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*range(34)]
    started = next(event for event in events if isinstance(event, TurnStart))
    ended = next(event for event in events if isinstance(event, TurnEnd))
    assert (started.provider, ended.provider) == ("flux", "cartesia")
    assert not [event for event in events if isinstance(event, SessionError)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_session_waits_for_a_worker_that_can_serve_it(
    harness: Harness,
    flux: TurnsServer,
    tmp_path: Path,
    number: signal.Signals,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The session names a provider that the only other worker does not have."""
    settings = {"stt_providers": "flux", "stt_flux_url": flux.url}
    async with (
        harness.worker_process("one", tmp_path / "one", drain_s="0", **settings) as first,
        anyio.create_task_group() as tasks,
    ):
        await harness.announce("call-1", provider="flux", language="de")
        tasks.start_soon(harness.play, "call-1", SOUND)
        await harness.until("call-1", TurnUpdate, 5)
        async with harness.worker(stt_providers="cartesia", worker_id="two") as other:
            first.send_signal(number)
            declined = other.context.declined
            await eventually(lambda: declined.current(time.monotonic()), "a declined session")
            await anyio.sleep(0.5)  # it could take the session over some times more
            assert not other.running
            taken_over = sum(other.context.stats.takeovers.values())
            async with harness.worker(worker_id="three", **settings):
                events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*range(34)]
    assert {event.provider for event in events} == {"flux"}
    assert not [event for event in events if isinstance(event, SessionError)]
    assert not await harness.dead()
    assert taken_over == 1
    lines = [line for line in caplog.messages if "left to workers with other providers" in line]
    assert len(lines) == 1
    assert "field `provider`: is not configured; configured: cartesia" in lines[0]


async def _is_empty(harness: Harness, stream: str) -> bool:
    return await harness.redis.xlen(stream) == 0


async def test_session_that_no_worker_serves_ends_when_idle(
    harness: Harness, flux: TurnsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its open turn ends with the text so far."""
    settings = {"stt_providers": "flux", "stt_flux_url": flux.url}
    async with harness.worker_process("one", tmp_path / "one", **settings) as first:
        await harness.announce("call-1", providers="flux")
        await harness.play("call-1", SOUND[: len(SOUND) // 2], end=False)
        await harness.until("call-1", TurnUpdate, 5)
        first.send_signal(signal.SIGKILL)
    async with harness.worker(stt_providers="cartesia", session_idle_s=1.0) as other:
        events = (await harness.until_ended("call-1"))["call-1"]
        sessions = other.context.keys.sessions
        await eventually(lambda: _is_empty(harness, sessions), "an empty list of sessions")
        assert other.context.stats.rejected_entries["stt_unserved"] == 1
    check_order(events)
    turn, error, ended = events[-3:]
    assert isinstance(turn, TurnEnd)
    assert turn.reason == "close"
    assert isinstance(error, SessionError)
    assert (error.code, error.fatal) == ("stt_unserved", True)
    assert "nothing was appended for 1 s" in error.message
    assert "field `providers`: is not configured; configured: cartesia" in error.message
    assert isinstance(ended, SessionEnded)
    assert (ended.reason, ended.provider) == ("error", "flux")
    (dead,) = await harness.dead()
    assert dead[b"reason"] == b"stt_unserved"
    assert any("call-1: ending session (no worker" in line for line in caplog.messages)


async def test_new_session_that_no_worker_can_serve_is_refused(harness: Harness) -> None:
    async with harness.worker(stt_providers="cartesia"):
        await harness.announce("call-1", provider="flux")
        events = (await harness.until_ended("call-1"))["call-1"]
    (error,) = [event for event in events if isinstance(event, SessionError)]
    assert error.fatal
    assert {event.provider for event in events} == {"flux"}, "the one that it names"
    assert len(await harness.dead()) == 1
