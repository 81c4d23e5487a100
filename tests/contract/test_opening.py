"""The protocol's rules about the upgrade, one by one, with literal URLs, headers and JSON."""

import json

import anyio
import pytest
from websockets.exceptions import InvalidStatus

from tests.contract.wire import (
    GOOD,
    HEADERS,
    PHONE,
    closed,
    dial,
    next_event,
    rest_of,
    serving,
    until_open,
)
from tests.support.polling import PATIENCE_S
from worker.local.emulator.engines.base import TurnSettings
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.settings import ServerSettings

KEYED = ServerSettings(port=0, api_keys=frozenset({"sk_car_one", "sk_car_two"}))
VERSION = {"Cartesia-Version": "2026-03-01"}


# Row 1


@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": "sk_car_three"}, {"Authorization": "Basic x"}]
)
async def test_01_bad_credentials_get_401_and_json(headers: dict[str, str]) -> None:
    async with serving(KEYED) as server:
        with pytest.raises(InvalidStatus) as refused:
            await dial(server, headers=headers | VERSION)
    response = refused.value.response
    assert response.status_code == 401
    assert response.headers["Content-Type"] == "application/json"
    body = json.loads(response.body or b"")
    assert body.keys() == {"error_code", "title", "message", "request_id"}
    assert body["request_id"] == response.headers["X-Request-Id"]


async def test_01_versions_before_march_2026_get_plain_text() -> None:
    async with serving(KEYED) as server:
        with pytest.raises(InvalidStatus) as refused:
            await dial(server, headers={"Cartesia-Version": "2025-04-16"})
    assert refused.value.response.status_code == 401
    assert (refused.value.response.body or b"").startswith(b"Unauthorized: ")


async def test_01_other_paths_get_404() -> None:
    async with serving() as server:
        with pytest.raises(InvalidStatus) as refused:
            await dial(server, path="/stt/websocket")
    assert refused.value.response.status_code == 404


async def test_01_upgrade_and_events_have_same_request_id() -> None:
    async with serving() as server, dial(server) as ws:
        assert ws.response is not None
        request_id = ws.response.headers["X-Request-Id"]
        await ws.send(
            synthesize_words([1], PHONE)
            + synthesize_silence(500, PHONE)
            + synthesize_words([2], PHONE)
        )
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
async def test_02_key_is_accepted_in_three_places(
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
async def test_02_version_in_query_takes_precedence(
    header: str | None, query: str | None, *, plain: bool
) -> None:
    asked = GOOD if query is None else GOOD | {"cartesia_version": query}
    async with serving(KEYED) as server:
        with pytest.raises(InvalidStatus) as refused:
            await dial(server, asked, {} if header is None else {"cartesia-version": header})
    assert (refused.value.response.headers["Content-Type"] != "application/json") is plain


@pytest.mark.parametrize("version", [{}, {"Cartesia-Version": "latest"}])
async def test_02_version_is_required(version: dict[str, str]) -> None:
    async with serving() as server:
        with pytest.raises(InvalidStatus) as refused:
            await dial(server, headers={"X-API-Key": "k"} | version)
    assert refused.value.response.status_code == 400


# Row 3


async def test_03_wrong_model_gets_error_event_not_connected() -> None:
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
async def test_03_wrong_settings_close_with_error_title(fault: dict[str, str], title: str) -> None:
    async with serving() as server, dial(server, GOOD | fault) as ws:
        events, code, reason = await rest_of(ws)
    assert [(event["type"], event["title"], event["status_code"]) for event in events] == [
        ("error", title, 400)
    ]
    assert (code, reason) == (1008, title)


async def test_03_override_is_checked_against_defaults() -> None:
    older = ServerSettings(port=0, turn=TurnSettings(start=0.8, eager_end=0.4, end=0.2))
    async with serving(older) as server:
        async with dial(server, GOOD | {"turn_end_threshold": "0.4"}) as ws:
            assert (await rest_of(ws))[1:] == (1008, "Invalid turn thresholds")
        async with dial(server, GOOD | {"turn_end_threshold": "0.3"}) as ws:
            assert (await next_event(ws))["type"] == "connected"


@pytest.mark.parametrize("model", ["ink-2", "ink-2-2026-09-01", "ink-preview"])
async def test_03_served_models_are_configurable(model: str) -> None:
    served = ServerSettings(port=0, models=("ink-2", "ink-preview"))
    async with serving(served) as server, dial(server, GOOD | {"model": model}) as ws:
        assert (await next_event(ws))["type"] == "connected"


# Row 4


async def test_04_connected_is_first_and_early_audio_is_kept() -> None:
    async with serving() as server, dial(server) as ws:
        await ws.send(synthesize_words([1], PHONE))
        assert ws.response is not None
        request_id = ws.response.headers["X-Request-Id"]
        assert await ws.recv() == f'{{"type":"connected","request_id":"{request_id}"}}'
        assert await ws.recv() == f'{{"type":"turn.start","request_id":"{request_id}"}}'
        assert (
            await ws.recv()
            == f'{{"type":"turn.update","transcript":"w1","request_id":"{request_id}"}}'
        )


# Row 11


async def test_11_socket_over_cap_gets_429_until_one_closes() -> None:
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


async def test_11_cap_holds_for_simultaneous_connects() -> None:
    answers: list[str] = []

    async def knock() -> None:
        try:
            async with dial(server) as ws:
                answers.append((await next_event(ws))["type"])
                await ws.wait_closed()
        except InvalidStatus as refused:
            answers.append(str(refused.response.status_code))

    capped = ServerSettings(port=0, max_connections=3)
    async with serving(capped) as server, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(knock)
        with anyio.fail_after(PATIENCE_S):
            while len(answers) < 20:
                await anyio.sleep(0.01)
        server.cut_all()
    assert sorted(answers) == [*(17 * ["429"]), *(3 * ["connected"])]


@pytest.mark.parametrize(
    ("headers", "status", "title"),
    [
        ({}, 401, "Unauthorized"),
        ({"X-API-Key": "sk_car_one"}, 400, "Invalid version"),
        (HEADERS | {"X-API-Key": "sk_car_one"}, 429, "Concurrency limit reached"),
    ],
)
async def test_11_cap_and_credential_errors_can_be_in_band(
    headers: dict[str, str], status: int, title: str
) -> None:
    keys = frozenset({"sk_car_one"})
    options = ServerSettings(port=0, api_keys=keys, max_connections=1, refuse_in_band=True)
    async with serving(options) as server:
        async with dial(server, headers=HEADERS | {"X-API-Key": "sk_car_one"}) as first:
            assert (await next_event(first))["type"] == "connected"
            async with dial(server, headers=headers) as ws:
                (error,), code, reason = await rest_of(ws)
        assert (error["type"], error["status_code"]) == ("error", status)
        assert error.get("error_code") == ("concurrency_limited" if status == 429 else None)
        assert (code, reason) == (1008, title)
