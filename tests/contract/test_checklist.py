"""The wire's rules, one by one, over a real socket against literal URLs and JSON."""

import json
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.contract.wire import (
    GOOD,
    PHONE,
    closed,
    dial,
    next_event,
    rest_of,
    serving,
    until_open,
)
from worker.local.engines.base import TurnSettings
from worker.local.engines.script import ScriptEngine, ScriptOptions, hush, say
from worker.local.server.settings import ServerSettings

KEYED = ServerSettings(port=0, api_keys=frozenset({"sk_car_one", "sk_car_two"}))
VERSION = {"Cartesia-Version": "2026-03-01"}


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


# Row 1


@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": "sk_car_three"}, {"Authorization": "Basic x"}]
)
async def test_01_bad_credentials_are_refused_with_401_and_json(headers: dict[str, str]) -> None:
    async with serving(KEYED) as server:
        with pytest.raises(InvalidStatus) as refused:
            await dial(server, headers=headers | VERSION)
    response = refused.value.response
    assert response.status_code == 401
    assert response.headers["Content-Type"] == "application/json"
    body = json.loads(response.body or b"")
    assert body.keys() == {"error_code", "title", "message", "request_id"}
    assert body["request_id"] == response.headers["X-Request-Id"]


async def test_01_versions_before_march_2026_are_refused_in_plain_text() -> None:
    async with serving(KEYED) as server:
        with pytest.raises(InvalidStatus) as refused:
            await dial(server, headers={"Cartesia-Version": "2025-04-16"})
    assert refused.value.response.status_code == 401
    assert (refused.value.response.body or b"").startswith(b"Unauthorized: ")


async def test_01_other_paths_are_not_found() -> None:
    async with serving() as server:
        with pytest.raises(InvalidStatus) as refused:
            await dial(server, path="/stt/websocket")
    assert refused.value.response.status_code == 404


async def test_01_the_upgrade_names_the_request_as_every_event_does() -> None:
    async with serving() as server, dial(server) as ws:
        assert ws.response is not None
        request_id = ws.response.headers["X-Request-Id"]
        await ws.send(say([1], PHONE) + hush(500, PHONE) + say([2], PHONE))
        await ws.send("{}")
        events, _, _ = await closed(ws)
        assert {event["request_id"] for event in events} == {request_id}
        assert not ws.protocol.extensions


# Row 2


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"X-API-Key": "sk_car_one"}, {}),
        ({"x-api-key": "sk_car_two"}, {}),
        ({"Authorization": "Bearer sk_car_one"}, {}),
        ({"authorization": "bearer sk_car_two"}, {}),
        ({}, {"access_token": "sk_car_one"}),
    ],
)
async def test_02_a_key_is_taken_in_each_of_its_three_places(
    headers: dict[str, str], query: dict[str, str]
) -> None:
    async with serving(KEYED) as server, dial(server, GOOD | query, headers | VERSION) as ws:
        assert (await next_event(ws))["type"] == "connected"


@pytest.mark.parametrize(
    ("header", "query", "plain"),
    [
        ("2026-08-14", None, False),
        ("2024-06-10", None, True),
        (None, "2025-11-04", True),
        ("2026-08-14", "2025-11-04", True),
        ("2025-11-04", "2026-03-01", False),
    ],
)
async def test_02_the_version_in_the_query_wins(
    header: str | None, query: str | None, *, plain: bool
) -> None:
    asked = GOOD if query is None else GOOD | {"cartesia_version": query}
    async with serving(KEYED) as server:
        with pytest.raises(InvalidStatus) as refused:
            await dial(server, asked, {} if header is None else {"cartesia-version": header})
    assert (refused.value.response.headers["Content-Type"] != "application/json") is plain


@pytest.mark.parametrize("version", [{}, {"Cartesia-Version": "latest"}])
async def test_02_a_version_is_required(version: dict[str, str]) -> None:
    async with serving() as server:
        with pytest.raises(InvalidStatus) as refused:
            await dial(server, headers={"X-API-Key": "k"} | version)
    assert refused.value.response.status_code == 400


# Row 3


async def test_03_a_wrong_model_is_told_in_band_instead_of_connected() -> None:
    async with serving() as server, dial(server, GOOD | {"model": "ink-whisper"}) as ws:
        events, code, reason = await rest_of(ws)
    assert ws.response is not None
    assert events == [
        {
            "type": "error",
            "title": "Invalid model",
            "message": "The model is not valid, make sure it is a valid model ID.",
            "error_code": "model_not_found",
            "status_code": 400,
            "request_id": ws.response.headers["X-Request-Id"],
        }
    ]
    assert (code, reason) == (1008, "Invalid model")


@pytest.mark.parametrize(
    ("fault", "title"),
    [
        ({"encoding": "opus"}, "Invalid encoding"),
        ({"sample_rate": "4000"}, "Invalid sample rate"),
        ({"turn_eager_end_threshold": "0.25"}, "Invalid turn thresholds"),
        (
            {"turn_end_threshold": "0.5", "turn_eager_end_threshold": "0.4"},
            "Invalid turn thresholds",
        ),
        ({"keyterm": "x" * 1201}, "Invalid keyterms"),
    ],
)
async def test_03_other_wrong_settings_close_with_their_title(
    fault: dict[str, str], title: str
) -> None:
    async with serving() as server, dial(server, GOOD | fault) as ws:
        events, code, reason = await rest_of(ws)
    assert [(event["type"], event["title"], event["status_code"]) for event in events] == [
        ("error", title, 400)
    ]
    assert (code, reason) == (1008, title)


async def test_03_an_override_is_checked_against_defaults_it_does_not_send() -> None:
    older = ServerSettings(port=0, turn=TurnSettings(start=0.8, eager_end=0.4, end=0.2))
    async with serving(older) as server:
        async with dial(server, GOOD | {"turn_end_threshold": "0.4"}) as ws:
            assert (await rest_of(ws))[1:] == (1008, "Invalid turn thresholds")
        async with dial(server, GOOD | {"turn_end_threshold": "0.3"}) as ws:
            assert (await next_event(ws))["type"] == "connected"


# Row 4


async def test_04_connected_comes_at_once_and_audio_may_come_before_it_is_read() -> None:
    async with serving() as server, dial(server) as ws:
        await ws.send(say([1], PHONE))
        assert ws.response is not None
        request_id = ws.response.headers["X-Request-Id"]
        assert await ws.recv() == f'{{"type":"connected","request_id":"{request_id}"}}'
        assert await ws.recv() == f'{{"type":"turn.start","request_id":"{request_id}"}}'
        assert (
            await ws.recv()
            == f'{{"type":"turn.update","transcript":"w1","request_id":"{request_id}"}}'
        )


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
async def test_05_an_unknown_text_gets_a_400_that_names_the_commands(text: str) -> None:
    async with serving() as server, dial(server) as ws:
        await next_event(ws)
        await ws.send(text)
        error = await next_event(ws)
        assert (error["type"], error["status_code"]) == ("error", 400)
        assert "done, close, config" in error["message"]
        await ws.send(say([1], PHONE))
        events, code, _ = await closed(ws)
    assert (kinds(events), code) == (["turn.start", "turn.update", "turn.end"], 1000)


# Row 6


async def test_06_config_takes_effect_in_an_open_turn_without_an_answer() -> None:
    async with serving() as server, dial(server) as ws:
        await ws.send(say([1], PHONE) + hush(450, PHONE))  # the default would end it at 480 ms
        await ws.send('{"type":"config","turn":{"end_threshold":0.1}}')
        await ws.send(hush(180, PHONE) + say([2], PHONE) + hush(450, PHONE))
        await ws.send('{"type":"config","turn":{"end_threshold":0.5,"eager_end_threshold":null}}')
        await ws.send('{"type":"config"}')
        await ws.send(hush(10, PHONE))
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
async def test_06_a_wrong_config_is_told_and_changes_nothing(turn: str) -> None:
    async with serving() as server, dial(server) as ws:
        await next_event(ws)
        await ws.send(f'{{"type":"config","turn":{turn}}}')
        error = await next_event(ws)
        assert (error["type"], error["status_code"]) == ("error", 400)
        await ws.send(say([1], PHONE) + hush(480, PHONE))
        events, code, _ = await closed(ws)
    assert (kinds(events)[-1], code) == ("turn.end", 1000)


# Row 7


async def test_07_turns_follow_the_state_machine_and_join_verbatim() -> None:
    audio = b"".join(
        say([2 * n], PHONE) + hush(300, PHONE) + say([2 * n + 1], PHONE) + hush(500, PHONE)
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


# Row 8


async def test_08_an_open_turn_waits_for_audio_and_zeros_end_it() -> None:
    async with serving() as server, dial(server) as ws:
        await ws.send(say([1], PHONE))
        assert [(await next_event(ws))["type"] for _ in range(3)] == [
            *("connected", "turn.start", "turn.update")
        ]
        with anyio.move_on_after(0.6) as waited:  # longer than the silence that would end it
            await ws.recv()
        assert waited.cancelled_caught
        await ws.send(bytes(2 * 8 * 480))
        assert [(await next_event(ws))["type"] for _ in range(2)] == ["turn.eager_end", "turn.end"]


# Row 9


async def test_09_only_audio_keeps_a_connection_from_going_idle() -> None:
    async with serving(ServerSettings(port=0, idle_timeout_s=0.4)) as server:
        async with dial(server) as ws:
            for _ in range(12):
                await ws.send(hush(50, PHONE))
                await anyio.sleep(0.05)
            assert kinds((await closed(ws))[0]) == ["connected"]
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


# Row 10


@pytest.mark.parametrize("command", ["close", "done"])
async def test_10_close_hears_out_what_was_sent_then_closes_normally(command: str) -> None:
    slow = ScriptEngine(ScriptOptions(latency_ms=100))
    async with serving(engine=slow) as server, dial(server) as ws:
        await ws.send(say([1, 2], PHONE))
        await ws.send(f'{{"type":"{command}"}}')
        events, code, _ = await rest_of(ws)
    assert (events[-1]["type"], events[-1]["transcript"], code) == ("turn.end", "w1 w2", 1000)


async def test_10_closing_without_audio_gives_no_events() -> None:
    async with serving() as server, dial(server) as ws:
        events, code, _ = await closed(ws)
    assert (kinds(events), code) == (["connected"], 1000)


async def test_10_without_close_the_turn_is_not_ended() -> None:
    async with serving() as server:
        async with dial(server) as ws:
            await ws.send(say([1], PHONE))
            while (await next_event(ws))["type"] != "turn.update":
                pass
        await until_open(server, 0)
        assert list(server.connections[0].transcripts) == []
        assert server.connections[0].open_transcript == "w1"


# Row 11


async def test_11_a_socket_over_the_cap_is_refused_with_429_until_one_leaves() -> None:
    capped = ServerSettings(port=0, max_connections=2)
    async with serving(capped) as server, dial(server), dial(server) as second:
        with pytest.raises(InvalidStatus) as refused:
            await dial(server)
        response = refused.value.response
        assert response.status_code == 429
        assert json.loads(response.body or b"")["error_code"] == "concurrency_limited"
        await closed(second)
        await until_open(server, 1)
        async with dial(server) as third:
            assert (await next_event(third))["type"] == "connected"
