"""Two providers, cartesia before flux: one fails, and its sessions continue at the other one."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import anyio
import pytest

from schemas.turns import Event, SessionError, TurnEnd, TurnStart, TurnUpdate
from tests.support.harness import FLUX_KEY, KEY, PCM16, Harness, check_order, words
from tests.support.polling import eventually, no_longer
from worker.bus import breaker as bus_breaker
from worker.core import failover
from worker.core.breaker import MAX_FAILURES, BreakerState
from worker.local.emulator.engines.script import (
    ScriptEngine,
    ScriptOptions,
    synthesize_silence,
    synthesize_words,
)
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.session import connection, providers
from worker.session.session import Session
from worker.stt import health
from worker.stt.keys import ApiKey
from worker.worker import Worker

TURN = range(12, 42)
"""Words of a turn of 6 s."""


@pytest.fixture
async def flux() -> AsyncIterator[TurnsServer]:
    """Run a second local server, as flux."""
    settings = ServerSettings(port=0, provider="flux", api_keys=frozenset({KEY, FLUX_KEY}))
    async with TurnsServer.serve(settings, ScriptEngine(ScriptOptions(latency_ms=150))) as server:
        yield server


@pytest.fixture
def both(harness: Harness, flux: TurnsServer, expected_leftovers: list[str]) -> dict[str, str]:
    """Return settings of a worker with both providers."""
    expected_leftovers.append("breaker:*")
    return {"stt_providers": "cartesia,flux", "stt_flux_url": flux.url}


def turn_providers(events: Sequence[Event]) -> list[tuple[str, str]]:
    """Return the providers at the start and the end of each turn."""
    starts = [event.provider for event in events if isinstance(event, TurnStart)]
    ends = [event.provider for event in events if isinstance(event, TurnEnd)]
    return list(zip(starts, ends, strict=True))


def sound(*turns: Sequence[int]) -> bytes:
    """Return turns, each followed by silence that ends it."""
    silence = synthesize_silence(1_200, PCM16)
    return b"".join(synthesize_words(turn, PCM16) + silence for turn in turns)


def fail(server: TurnsServer) -> None:
    """Cut the sockets of a server in the middle of their turns, and reset new ones."""
    server.faults.set("cut@mid-turn", "cut@handshake")


async def test_turn_continues_at_the_next_provider(
    harness: Harness, stt: TurnsServer, both: dict[str, str]
) -> None:
    async with harness.worker(**both), anyio.create_task_group() as tasks:
        await harness.announce("call-1")
        tasks.start_soon(harness.play, "call-1", sound(range(12), TURN))
        await harness.until("call-1", TurnUpdate, 20)
        fail(stt)
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*range(12), *TURN]
    assert turn_providers(events) == [("cartesia", "cartesia"), ("cartesia", "flux")]
    assert not [event for event in events if isinstance(event, SessionError)]


async def test_turn_at_flux_continues_at_cartesia(
    harness: Harness, flux: TurnsServer, both: dict[str, str]
) -> None:
    async with harness.worker(**both), anyio.create_task_group() as tasks:
        await harness.announce("call-1", providers="flux,cartesia")
        tasks.start_soon(harness.play, "call-1", sound(TURN))
        await harness.until("call-1", TurnUpdate, 14)
        fail(flux)
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*TURN]
    assert turn_providers(events) == [("flux", "cartesia")]


@pytest.mark.parametrize(
    "fault", ["http=503", "http=401", "http=429", "connected=never", "half-open@handshake"]
)
async def test_refused_or_silent_provider_is_passed_over(
    harness: Harness, stt: TurnsServer, both: dict[str, str], fault: str
) -> None:
    stt.faults.set(fault)
    async with harness.worker(**both) as worker:
        await harness.announce("call-1")
        await harness.play("call-1", sound(range(4)))
        events = (await harness.until_ended("call-1"))["call-1"]
        assert worker.readiness.ready, worker.readiness
    check_order(events)
    assert words(events) == [*range(4)]
    assert turn_providers(events) == [("flux", "flux")]
    assert not [event for event in events if isinstance(event, SessionError)]


async def test_half_open_socket_is_left_inside_the_turn(
    harness: Harness, stt: TurnsServer, both: dict[str, str]
) -> None:
    stt.faults.set("half-open@mid-turn", "half-open@handshake")
    async with harness.worker(**both):
        await harness.announce("call-1")
        await harness.play("call-1", sound(TURN))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*TURN]
    assert turn_providers(events)[0][1] == "flux"


async def test_silent_flux_is_left_inside_the_turn(
    harness: Harness, flux: TurnsServer, both: dict[str, str]
) -> None:
    flux.faults.set("stall@mid-turn")
    async with harness.worker(**both):
        await harness.announce("call-1", providers="flux,cartesia")
        await harness.play("call-1", sound(TURN))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*TURN]
    assert turn_providers(events) == [("flux", "cartesia")]


async def test_silent_cartesia_is_left_inside_the_turn(
    harness: Harness,
    stt: TurnsServer,
    both: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It answers pings, and no word. The session does not wait for the watchdog."""
    stt.faults.set("stall@mid-turn")
    silence = synthesize_silence(100, PCM16)
    spoken = b"".join(synthesize_words([at, at + 1], PCM16) + silence for at in range(0, 40, 2))
    async with harness.worker(**both) as worker:
        await harness.announce("call-1")
        await harness.play("call-1", spoken + synthesize_silence(1_200, PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
        assert worker.context.stats.failovers == {"cartesia": 1, "flux": 0}
    check_order(events)
    assert words(events) == [*range(40)]
    assert turn_providers(events) == [("cartesia", "flux")]
    assert any("no message for 5 s of speech inside a turn" in line for line in caplog.messages)
    assert not [event for event in events if isinstance(event, SessionError)]


@pytest.mark.parametrize("command", ["close", "ForceEndTurn"])
async def test_provider_that_ends_no_turn_is_left(
    harness: Harness,
    stt: TurnsServer,
    flux: TurnsServer,
    both: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    """It does not answer the end of the session, and Flux not even the end of the stream."""
    monkeypatch.setattr(connection, "FLUSH_TIMEOUT_S", 3.0)
    stt.faults.set("ignore=close")
    flux.faults.set("ignore=ForceEndTurn", "no-turn-end", "stall@flush")
    first, other = ("cartesia", "flux") if command == "close" else ("flux", "cartesia")
    (stt if other == "cartesia" else flux).faults.clear()
    async with harness.worker(**both):
        await harness.announce("call-1", providers=f"{first},{other}")
        await harness.play("call-1", synthesize_words(TURN, PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [*TURN]
    assert turn_providers(events) == [(first, other)]
    assert events[-1].connection == 2


async def test_session_waits_until_one_provider_is_back(
    harness: Harness, stt: TurnsServer, flux: TurnsServer, both: dict[str, str]
) -> None:
    stt.faults.set("http=503")
    flux.faults.set("http=503")
    async with harness.worker(**both), anyio.create_task_group() as tasks:
        await harness.announce("call-1")
        tasks.start_soon(harness.play, "call-1", sound(TURN))
        error = await harness.until("call-1", SessionError)
        flux.faults.clear()
        events = (await harness.until_ended("call-1"))["call-1"]
    assert (error.code, error.fatal) == ("stt_unavailable", False)
    check_order(events)
    assert words(events) == [*TURN]
    assert turn_providers(events) == [("flux", "flux")]


async def test_sessions_that_wait_to_connect_pass_over_a_silent_provider(
    harness: Harness, stt: TurnsServer, both: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each of them tries it for the failover time, one after another."""
    monkeypatch.setattr(health, "MAX_CONCURRENT_CONNECTS", 1)
    stt.faults.set("half-open@handshake")
    calls = ("call-1", "call-2", "call-3")
    async with harness.worker(**both) as worker, anyio.create_task_group() as tasks:
        for call in calls:
            await harness.announce(call)
            tasks.start_soon(harness.play, call, sound(range(3)))
        slots = worker.context.provider_health["cartesia"].connect_slots
        await eventually(lambda: slots.statistics().tasks_waiting == 2, "two that wait")
        for number in range(MAX_FAILURES):
            worker.context.breakers.failed("cartesia", f"other-{number}")
        ended = await harness.until_ended(*calls)
        assert worker.context.stats.connects["transient"] == 1
    for events in ended.values():
        check_order(events)
        assert words(events) == [*range(3)]
        assert turn_providers(events) == [("flux", "flux")]


async def test_back_off_grows_while_all_providers_fail(
    harness: Harness, stt: TurnsServer, flux: TurnsServer, both: dict[str, str]
) -> None:
    stt.faults.set("http=503")
    flux.faults.set("http=503")
    async with harness.worker(**both, stt_failover_s=0.5) as worker:
        await harness.announce("call-1")
        await harness.play("call-1", sound(range(3)))
        stats = worker.context.stats
        await eventually(lambda: sum(stats.failovers.values()) >= 12, "12 failovers")
        refused = stats.connects["transient"]
        stt.faults.clear()
        flux.faults.clear()
        events = (await harness.until_ended("call-1"))["call-1"]
    assert refused < 36  # three at each provider: a new back-off would allow four
    assert words(events) == [*range(3)]


async def test_provider_that_rejects_an_open_socket_is_left(
    harness: Harness, stt: TurnsServer, both: dict[str, str]
) -> None:
    stt.faults.set("close=1008@mid-turn")
    async with harness.worker(**both) as worker:
        await harness.announce("call-1")
        await harness.play("call-1", sound(range(4)))
        events = (await harness.until_ended("call-1"))["call-1"]
        assert worker.context.stats.failovers == {"cartesia": 1, "flux": 0}
    check_order(events)
    assert words(events) == [*range(4)]
    assert turn_providers(events) == [("cartesia", "flux")]
    assert not any(event.fatal for event in events if isinstance(event, SessionError))


async def test_provider_that_rejects_the_session_is_left_for_good(
    harness: Harness, stt: TurnsServer, both: dict[str, str]
) -> None:
    stt.faults.set("http=400")
    async with harness.worker(**both) as worker:
        await harness.announce("call-1")
        await harness.play("call-1", sound(range(4)))
        events = (await harness.until_ended("call-1"))["call-1"]
        assert set(worker.context.breakers.states().values()) == {BreakerState.CLOSED}
    assert words(events) == [*range(4)]
    assert not any(event.fatal for event in events if isinstance(event, SessionError))


def _state(worker: Worker, provider: str) -> Callable[[], BreakerState]:
    return lambda: worker.context.breakers.states()[provider]


async def test_sessions_return_between_turns_after_a_probe(
    harness: Harness,
    stt: TurnsServer,
    both: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    for module in (failover, providers):
        monkeypatch.setattr(module, "MIN_STAY_S", 1.0)
    stt.faults.set("http=503")
    async with harness.worker(**both) as worker:
        for name in ("call-1", "call-2"):
            await harness.announce(name)
            await harness.play(name, sound(range(3)), end=False)
        await harness.until("call-2", TurnEnd)
        state = _state(worker, "cartesia")
        await eventually(lambda: state() is not BreakerState.CLOSED, "an open breaker")
        stt.faults.clear()
        async with anyio.create_task_group() as tasks:
            for name in ("call-1", "call-2"):
                tasks.start_soon(
                    harness.play, name, sound(*[range(at, at + 3) for at in range(3, 33, 3)])
                )
            ended = await harness.until_ended("call-1", "call-2")
        await no_longer(lambda: state() is not BreakerState.CLOSED, "the open breaker")
    for events in ended.values():
        check_order(events)
        assert words(events) == [*range(33)]
        found = turn_providers(events)
        assert found[0] == ("flux", "flux")
        assert all(starts == ends for starts, ends in found), "a session returns between turns"
    assert any(events[-1].provider == "cartesia" for events in ended.values())
    assert any("returns to provider cartesia" in line for line in caplog.messages)


async def test_probe_of_a_session_that_ends_before_a_tick_counts(
    harness: Harness, both: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_breaker, "FIRST_PROBE_S", 0.0)
    monkeypatch.setattr(Session, "tick", lambda session, now: None)
    async with harness.worker(**both) as worker:
        breakers, state = worker.context.breakers, _state(worker, "cartesia")
        for number in range(MAX_FAILURES):
            breakers.failed("cartesia", f"other-{number}")

        def may_probe() -> bool:
            if state() is BreakerState.OPEN:
                breakers.take_probe("cartesia")  # only asks for one
            return state() is BreakerState.PROBE_DUE

        await eventually(may_probe, "a probe for this worker")
        await harness.announce("call-1")
        await harness.play("call-1", sound(range(3)))
        events = (await harness.until_ended("call-1"))["call-1"]
        assert state() is BreakerState.CLOSED
    assert turn_providers(events) == [("cartesia", "cartesia")]


async def test_new_key_is_used_without_a_restart(harness: Harness, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk_car_old")
    settings = harness.settings()
    key = ApiKey.from_file("cartesia", "TURNBUS_CARTESIA_API_KEY_FILE", file)
    worker = Worker(settings, {"cartesia": key})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        await harness.announce("call-1")
        await harness.play("call-1", sound(range(3)))
        await eventually(lambda: worker.context.rejected_credentials, "a rejected key")
        file.write_text(KEY)
        events = (await harness.until_ended("call-1"))["call-1"]
        worker.stop()
    assert words(events) == [*range(3)]


async def test_language_decides_who_serves_a_session(
    harness: Harness, both: dict[str, str]
) -> None:
    async with harness.worker(**both):
        await harness.announce("call-1", language="de-CH")
        await harness.play("call-1", sound(range(3)))
        await harness.announce("call-2", language="fi")
        ended = await harness.until_ended("call-1", "call-2")
    assert {event.provider for event in ended["call-1"]} == {"flux"}
    assert words(ended["call-1"]) == [*range(3)]
    (error,) = [event for event in ended["call-2"] if isinstance(event, SessionError)]
    assert error.fatal
    assert "cartesia speaks en; flux speaks en, es" in error.message
    assert len(await harness.dead()) == 1
