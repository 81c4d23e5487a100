"""The protocol's rules about an open session, one by one, with literal JSON."""

import json
import time
from contextlib import suppress

import anyio
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.contract.wire import (
    PHONE,
    closed,
    dial,
    kinds,
    next_event,
    rest_of,
    serving,
    until_open,
)
from worker.local.emulator.engines.script import (
    ScriptEngine,
    ScriptOptions,
    synthesize_silence,
    synthesize_words,
)
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings

# Row 5


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"keepalive"}',
        '{"type":"finalize"}',
        "finalize",
        "",
        "[]",
        "\0" * 3200,
        '{"type":1}',
        '{"type":"close","deep":' + "[" * 100_000,
    ],
)
async def test_05_unknown_text_gets_400_that_lists_commands(text: str) -> None:
    async with serving() as server, dial(server) as ws:
        await next_event(ws)
        await ws.send(text)
        error = await next_event(ws)
        assert (error["type"], error["status_code"]) == ("error", 400)
        assert "done, close, config" in error["message"]
        await ws.send(synthesize_words([1], PHONE))
        events, code, _ = await closed(ws)
    assert (kinds(events), code) == (["turn.start", "turn.update", "turn.end"], 1000)


# Row 6


async def test_06_config_applies_in_open_turn_without_reply() -> None:
    async with serving() as server, dial(server) as ws:
        await ws.send(
            synthesize_words([1], PHONE) + synthesize_silence(450, PHONE)
        )  # the default would end it at 480 ms
        await ws.send('{"type":"config","turn":{"end_threshold":0.1}}')
        await ws.send(
            synthesize_silence(180, PHONE)
            + synthesize_words([2], PHONE)
            + synthesize_silence(450, PHONE)
        )
        await ws.send('{"type":"config","turn":{"end_threshold":0.5,"eager_end_threshold":null}}')
        await ws.send('{"type":"config"}')
        await ws.send(synthesize_silence(10, PHONE))
        events, _, _ = await closed(ws)
    assert kinds(events) == [
        *("connected", "turn.start", "turn.update", "turn.eager_end"),
        *("turn.resume", "turn.update", "turn.eager_end", "turn.end"),
    ]


@pytest.mark.parametrize(
    "turn",
    [
        '{"end_threshold":0.7}',
        '{"start_threshold":0.55}',
        '{"end_timeout_ms":100}',
        '{"end_threshold":"0.2"}',
    ],
)
async def test_06_wrong_config_gets_error_and_changes_nothing(turn: str) -> None:
    async with serving() as server, dial(server) as ws:
        await next_event(ws)
        await ws.send(f'{{"type":"config","turn":{turn}}}')
        error = await next_event(ws)
        assert (error["type"], error["status_code"]) == ("error", 400)
        await ws.send(synthesize_words([1], PHONE) + synthesize_silence(480, PHONE))
        events, code, _ = await closed(ws)
    assert (kinds(events)[-1], code) == ("turn.end", 1000)


async def test_06_config_reply_has_resulting_settings() -> None:
    async with serving(ServerSettings(port=0, config_ack=True)) as server, dial(server) as ws:
        await ws.send('{"type":"config","turn":{"end_threshold":0.1}}')
        await ws.send('{"type":"config","turn":{"end_threshold":0.9}}')
        _, ack, error = [await next_event(ws) for _ in range(3)]
        assert ws.response is not None
    assert ack == {
        "type": "config",
        "turn": {
            "start_threshold": 0.8,
            "eager_end_threshold": 0.6,
            "end_threshold": 0.1,
            "end_timeout_ms": 5600.0,
        },
        "request_id": ws.response.headers["X-Request-Id"],
    }
    assert error["title"] == "Invalid turn thresholds"


# Row 7


async def test_07_turns_follow_state_machine_and_join_verbatim() -> None:
    audio = b"".join(
        synthesize_words([2 * n], PHONE)
        + synthesize_silence(300, PHONE)
        + synthesize_words([2 * n + 1], PHONE)
        + synthesize_silence(500, PHONE)
        for n in range(3)
    )
    async with serving() as server, dial(server) as ws:
        await ws.send(audio)
        events, _, _ = await closed(ws)
    turn = ["turn.start", "turn.update", "turn.eager_end", "turn.resume", "turn.update"]
    assert kinds(events) == ["connected", *(3 * [*turn, "turn.eager_end", "turn.end"])]
    text = "".join(event["transcript"] for event in events if event["type"] == "turn.end")
    assert text == "w0 w1 w2 w3 w4 w5"
    so_far = ""
    for event in events:
        assert ("transcript" in event) == (
            event["type"] in {"turn.update", "turn.eager_end", "turn.end"}
        )
        assert event.get("transcript", so_far).startswith(so_far)
        so_far = "" if event["type"] == "turn.end" else event.get("transcript", so_far)


async def test_07_events_can_carry_turn_id() -> None:
    async with serving(ServerSettings(port=0, turn_id=True)) as server, dial(server) as ws:
        await ws.send(
            synthesize_words([1], PHONE)
            + synthesize_silence(500, PHONE)
            + synthesize_words([2], PHONE)
        )
        (connected, *turns), _, _ = await closed(ws)
    request_id = connected["request_id"]
    assert "turn_id" not in connected
    first = 4 * [f"{request_id}:1"]
    assert [event["turn_id"] for event in turns] == first + 3 * [f"{request_id}:2"]


async def test_07_later_turns_can_omit_leading_space() -> None:
    async with serving(ServerSettings(port=0, leading_space=False)) as server, dial(server) as ws:
        await ws.send(
            synthesize_words([1], PHONE)
            + synthesize_silence(500, PHONE)
            + synthesize_words([2, 3], PHONE)
        )
        events, _, _ = await closed(ws)
    assert [event["transcript"] for event in events if event["type"] == "turn.update"] == [
        *("w1", "w2", "w2 w3")
    ]
    assert events[-1]["transcript"] == "w2 w3"


# Row 8


async def test_08_open_turn_waits_for_audio_and_zeros_end_it() -> None:
    async with serving() as server, dial(server) as ws:
        await ws.send(synthesize_words([1], PHONE))
        assert [(await next_event(ws))["type"] for _ in range(3)] == [
            *("connected", "turn.start", "turn.update")
        ]
        with anyio.move_on_after(0.6) as waited:  # longer than the silence that would end it
            await ws.recv()
        assert waited.cancelled_caught
        await ws.send(bytes(2 * 8 * 480))
        assert [(await next_event(ws))["type"] for _ in range(2)] == ["turn.eager_end", "turn.end"]


# Row 9


IDLE_S = 0.4


async def _outlast(server: TurnsServer, message: bytes | str) -> tuple[list[str], int]:
    """Send a message repeatedly for longer than the server's idle timeout, then close.

    Returns the events received and the close code. It repeats once if this process was held up for
    half the timeout.
    """
    for _ in range(30):
        async with dial(server) as ws:
            longest_s, sent_at = 0.0, time.monotonic()
            with suppress(ConnectionClosed):
                for text in [*12 * [message], '{"type":"close"}']:
                    await ws.send(text)
                    longest_s = max(longest_s, time.monotonic() - sent_at)
                    sent_at = time.monotonic()
                    await anyio.sleep(0.05)
            longest_s = max(longest_s, time.monotonic() - sent_at)
            events, code, _ = await rest_of(ws)
        if longest_s < IDLE_S / 2:
            return kinds(events), code
    pytest.fail("this machine never let us send in time")


async def test_09_only_audio_resets_idle_timeout() -> None:
    async with serving(ServerSettings(port=0, idle_timeout_s=IDLE_S)) as server:
        assert await _outlast(server, synthesize_silence(50, PHONE)) == (["connected"], 1000)
        async with dial(server) as ws, anyio.create_task_group() as chatter:
            chatter.start_soon(_chat, ws)
            events, code, reason = await rest_of(ws)
            chatter.cancel_scope.cancel()
    assert set(kinds(events)) == {"connected", "error"}
    assert (code, reason) == (1001, "Idle timeout")


async def _chat(ws: ClientConnection) -> None:
    try:
        while True:
            await ws.ping()
            await ws.send("hello")
            await anyio.sleep(0.05)
    except ConnectionClosed:
        return


async def test_09_text_can_reset_idle_timeout() -> None:
    lenient = ServerSettings(port=0, idle_timeout_s=IDLE_S, text_resets_idle=True)
    async with serving(lenient) as server:
        assert await _outlast(server, '{"type":"config"}') == (["connected"], 1000)


async def test_09_session_duration_can_be_limited() -> None:
    limited = ServerSettings(port=0, max_session_s=0.3)
    async with (
        serving(limited) as server,
        dial(server) as ws,
        anyio.create_task_group() as talk,
    ):
        talk.start_soon(_talk, ws)
        _, code, reason = await rest_of(ws)
        talk.cancel_scope.cancel()
    assert (code, reason) == (1001, "Session limit")


async def _talk(ws: ClientConnection) -> None:
    try:
        while True:
            await ws.send(synthesize_silence(50, PHONE))
            await anyio.sleep(0.05)
    except ConnectionClosed:
        return


async def test_09_server_can_ping() -> None:
    async with serving(ServerSettings(port=0, ping_s=0.5)) as server:
        async with dial(server) as ws:
            await anyio.sleep(0.8)  # websockets answers
            assert (await closed(ws))[1] == 1000
        ws = await dial(server)
        await next_event(ws)
        ws.transport.pause_reading()  # no longer
        await until_open(server, 0)
        ws.transport.resume_reading()
        assert (await rest_of(ws))[1] == 1011


# Row 10


@pytest.mark.parametrize("command", ["close", "done"])
async def test_10_close_flushes_sent_audio_then_closes_with_1000(command: str) -> None:
    slow = ScriptEngine(ScriptOptions(latency_ms=100))
    async with serving(engine=slow) as server, dial(server) as ws:
        await ws.send(synthesize_words([1, 2], PHONE))
        await ws.send(f'{{"type":"{command}"}}')
        events, code, _ = await rest_of(ws)
    assert (events[-1]["type"], events[-1]["transcript"], code) == ("turn.end", "w1 w2", 1000)


async def test_10_close_without_audio_sends_no_events() -> None:
    async with serving() as server, dial(server) as ws:
        events, code, _ = await closed(ws)
    assert (kinds(events), code) == (["connected"], 1000)


async def test_10_turn_is_not_ended_without_close() -> None:
    async with serving() as server:
        async with dial(server) as ws:
            await ws.send(synthesize_words([1], PHONE))
            while (await next_event(ws))["type"] != "turn.update":
                pass
        await until_open(server, 0)
        assert list(server.connections[0].transcripts) == []
        assert server.connections[0].open_transcript == "w1"


# Row 12


async def test_12_audio_is_accepted_at_any_pace() -> None:
    async with serving() as server, dial(server) as ws:
        await ws.send(60 * synthesize_words(range(5), PHONE))
        events, code, _ = await closed(ws)
        assert server.connections[0].pace.peak == pytest.approx(60)
    assert (events[-1]["type"], code) == ("turn.end", 1000)


@pytest.mark.parametrize(("then", "code"), [("", 1008), (":open", 1000)])
async def test_12_pace_limit_can_be_enabled(then: str, code: int) -> None:
    async with serving() as server, dial(server) as ws:
        server.faults.set(f"pace=1.0:burst=200ms{then}")
        await ws.send(synthesize_words([1], PHONE))
        await ws.send(synthesize_words([2, 2], PHONE))  # more than the burst allowance
        if code == 1000:
            await ws.send('{"type":"close"}')
        events, left, _ = await rest_of(ws)
    (error,) = [event for event in events if event["type"] == "error"]
    assert (error["status_code"], error["title"], left) == (400, "Audio too fast", code)
    assert "w1" in json.dumps(events)
    assert "w2" not in json.dumps(events)


# Row 13; tests/unit/emulator/test_applied_faults.py has each fault in full


@pytest.mark.parametrize(
    ("spec", "ends_with", "code"),
    [
        ("cut@mid-turn", "turn.update", 1006),
        ("close=1011@mid-turn", "turn.update", 1011),
        ("close=1012@mid-turn", "turn.update", 1012),
        ("error=500@mid-turn", "error", 1011),
        ("half-open@mid-turn", "turn.update", 1006),
        ("connected=late:50ms", "turn.end", 1000),
        ("duplicate", "turn.end", 1000),
        ("no-turn-end", "turn.eager_end", 1000),
    ],
)
async def test_13_faults_are_injected_on_demand(spec: str, ends_with: str, code: int) -> None:
    # The idle timeout ends a half-open connection.
    idle_timeout_s = 0.5 if spec.startswith("half-open") else ServerSettings().idle_timeout_s
    async with serving(ServerSettings(port=0, idle_timeout_s=idle_timeout_s)) as server:
        server.faults.set(spec)
        async with dial(server) as ws:
            await ws.send(synthesize_words([1], PHONE) + synthesize_silence(500, PHONE))
            if code == 1000:
                await ws.send('{"type":"close"}')
            events, left, _ = await rest_of(ws)
    assert (events[0]["type"], events[-1]["type"], left) == ("connected", ends_with, code)
    assert server.connections[0].faults == [spec]
