"""The client of the provider's protocol, against the local server and misbehaving servers."""

import dataclasses
import json
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from schemas.audio import Encoding, TurnConfig
from tests.support.polling import PATIENCE_S
from worker.core.turn_tracker import ProviderInput
from worker.errors import (
    SttBusyError,
    SttCredentialsError,
    SttError,
    SttPermanentError,
    SttProtocolError,
    SttTooBigError,
    SttTransientError,
)
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import ScriptEngine, synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer
from worker.local.emulator.settings import ServerSettings
from worker.stt.cartesia import CARTESIA, TurnsStream
from worker.stt.events import Event, ProviderError, TurnEvent, UnknownMessage
from worker.stt.provider import Endpoint, Notes, StreamSettings
from worker.stt.stream import Stream

KEY = "sk_car_0123456789abcdef"
VERSION = "2026-03-01"
PHONE = StreamSettings("ink-2", Encoding.PCM_MULAW, 8_000)
SOUND = AudioFormat("pcm_mulaw", 8_000)


@asynccontextmanager
async def local_server(
    *, api_keys: frozenset[str] | None = None, max_connections: int | None = None
) -> AsyncIterator[TurnsServer]:
    settings = ServerSettings(port=0, api_keys=api_keys, max_connections=max_connections)
    async with TurnsServer.serve(settings, ScriptEngine()) as server:
        yield server


@asynccontextmanager
async def odd_server(
    handler: Callable[[ServerConnection], Awaitable[None]],
    process_request: Callable[[ServerConnection, Request], Response] | None = None,
) -> AsyncIterator[Endpoint]:
    """A provider whose behaviour is a given handler."""
    async with serve(handler, "127.0.0.1", 0, process_request=process_request) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield Endpoint(f"ws://127.0.0.1:{port}/stt/turns/websocket", VERSION, KEY)


def sends(*messages: dict[str, Any] | str | bytes) -> Callable[[ServerConnection], Awaitable[None]]:
    """A provider that sends this and then waits for the client to leave."""

    async def handler(ws: ServerConnection) -> None:
        for message in messages:
            await ws.send(json.dumps(message) if isinstance(message, dict) else message)
        await ws.wait_closed()

    return handler


def hangs_up(
    code: int, reason: str = "", *messages: dict[str, Any]
) -> Callable[[ServerConnection], Awaitable[None]]:
    async def handler(ws: ServerConnection) -> None:
        for message in messages:
            await ws.send(json.dumps(message))
        await ws.close(code, reason)

    return handler


def refuses(
    status: int, body: str, content_type: str = "application/json"
) -> Callable[[ServerConnection, Request], Response]:
    def process_request(ws: ServerConnection, request: Request) -> Response:
        response = ws.respond(HTTPStatus(status), body)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = content_type
        response.headers["X-Request-Id"] = "from-the-header"
        return response

    return process_request


CONNECTED = {"type": "connected", "request_id": "r1"}


async def refusal(service: Endpoint, settings: StreamSettings = PHONE) -> SttError:
    """Return the error of a connect; assert that the key is nowhere in it."""
    with anyio.fail_after(PATIENCE_S), pytest.raises(SttError) as refused:
        await CARTESIA.open(service, settings)
    error = refused.value
    shown = "".join(traceback.format_exception(error, chain=True))
    assert KEY not in shown + repr(error) + str(vars(error))
    assert "ws://" not in shown.replace(repr(service), "")
    return error


async def conversation(stream: Stream) -> list[Event]:
    """Return all messages until the provider closes on request."""
    messages: list[Event | None] = []
    with anyio.fail_after(PATIENCE_S):
        await stream.listen(lambda message, _at, _waiting: messages.append(message))
    return [message for message in messages if message is not None]


class _Enough(Exception):  # noqa: N818 - not an error
    """The expected message was passed."""


async def receive(stream: Stream) -> Event | None:
    """Return the next message; None if the provider closes instead. Later ones wait."""
    messages: list[Event] = []

    def handle(message: Event | None, _at: float, _waiting: int) -> None:
        if message is not None:
            messages.append(message)
            raise _Enough

    with suppress(_Enough):
        await stream.listen(handle)
    return messages[0] if messages else None


# -- the query


def test_query_has_only_settings_that_were_set() -> None:
    assert TurnsStream.query(PHONE) == "model=ink-2&encoding=pcm_mulaw&sample_rate=8000"


def test_query_has_each_threshold_separately() -> None:
    settings = msgspec.structs.replace(
        PHONE, turn=TurnConfig(turn_end_threshold=0.25, turn_end_timeout_ms=5600.0)
    )
    assert dict(parse_qsl(TurnsStream.query(settings))) == {
        "model": "ink-2",
        "encoding": "pcm_mulaw",
        "sample_rate": "8000",
        "turn_end_threshold": "0.25",
        "turn_end_timeout_ms": "5600",
    }


@given(
    start=st.none() | st.integers(500, 900).map(lambda n: n / 1000),
    eager=st.none() | st.integers(300, 800).map(lambda n: n / 1000),
    end=st.none() | st.integers(50, 500).map(lambda n: n / 1000),
    timeout=st.none() | st.integers(6_400, 112_000).map(lambda n: n / 10),
)
def test_settings_arrive_unchanged(
    start: float | None, eager: float | None, end: float | None, timeout: float | None
) -> None:
    settings = msgspec.structs.replace(PHONE, turn=TurnConfig(start, eager, end, timeout))
    asked = dict(parse_qsl(TurnsStream.query(settings)))
    for name in TurnConfig.__struct_fields__:
        value = getattr(settings.turn, name)
        assert (name in asked) == (value is not None)
        if value is not None:
            assert float(asked[name]) == value


@given(st.lists(st.text(max_size=30), max_size=8), st.text(min_size=1, max_size=30))
def test_key_terms_and_model_can_hold_any_text(terms: list[str], model: str) -> None:
    terms = [term.encode("utf-8", "replace").decode() for term in terms]
    model = model.encode("utf-8", "replace").decode()
    settings = msgspec.structs.replace(PHONE, model=model, keyterms=tuple(terms))
    query = TurnsStream.query(settings)
    assert query.isascii()
    assert query.isprintable()
    assert " " not in query
    assert "#" not in query
    asked = parse_qsl(query, keep_blank_values=True)
    assert [value for name, value in asked if name == "keyterm"] == terms
    assert [value for name, value in asked if name == "model"] == [model]
    assert len(asked) == 3 + len(terms)


# -- the key


def test_key_is_not_shown() -> None:
    service = Endpoint("wss://example.com/stt", VERSION, KEY)
    assert repr(service) == f"Endpoint(url='wss://example.com/stt', version='{VERSION}')"
    assert KEY not in f"{service} {service!r} {[service]}"


def test_key_is_not_shown_by_rich() -> None:
    assert KEY not in pretty_repr(Endpoint("wss://example.com/stt", VERSION, KEY))


@pytest.mark.parametrize("body", [f"Invalid key {KEY}", json.dumps({"message": f"no: {KEY}"})])
async def test_key_repeated_by_provider_is_redacted(body: str) -> None:
    async with odd_server(sends(), refuses(401, body)) as service:
        await refusal(service)


async def test_key_is_redacted_in_errors_only() -> None:
    """The key of a local server may be a common word."""
    end = {"type": "turn.end", "transcript": "Any company at any time?"}
    error = {"type": "error", "status_code": 400, "message": "any is no key"}
    async with odd_server(sends(CONNECTED, end, error)) as service:
        spoken = dataclasses.replace(service, key="any")
        async with await CARTESIA.open(spoken, PHONE) as stream:
            assert await receive(stream) == TurnEvent(ProviderInput.END, end["transcript"])
            shown = await receive(stream)
    assert shown == ProviderError("stt_error", "[key] is no key", 400)


# -- connecting to the local server


async def test_connect_sends_requested_settings() -> None:
    settings = msgspec.structs.replace(
        PHONE,
        keyterms=("Ink 2", "a&b=c", "Zürich"),
        turn=TurnConfig(turn_start_threshold=0.7, turn_end_timeout_ms=4500.0),
    )
    async with local_server(api_keys=frozenset({KEY})) as server:
        stream = await CARTESIA.open(Endpoint(server.url, VERSION, KEY), settings)
        async with stream:
            (seen,) = server.connections
            assert stream.request_id == seen.request_id != ""
            assert seen.params is not None
            assert seen.params.model == "ink-2"
            assert (seen.params.audio.encoding, seen.params.audio.sample_rate) == (
                "pcm_mulaw",
                8_000,
            )
            assert seen.params.keyterms == settings.keyterms
            assert (seen.params.turn.start, seen.params.turn.end_timeout_ms) == (0.7, 4500)
        await _until(lambda: seen.closed_at is not None)
        assert seen.close_code == 1000


async def test_session_runs_until_provider_closes() -> None:
    async with (
        local_server() as server,
        await CARTESIA.open(Endpoint(server.url, VERSION, KEY), PHONE) as stream,
    ):
        stream.send_audio(
            synthesize_silence(100, SOUND)
            + synthesize_words([1, 2], SOUND)
            + synthesize_silence(600, SOUND)
        )
        stream.send_config(TurnConfig(turn_end_threshold=0.4))
        stream.send_audio(synthesize_words([3], SOUND))
        stream.finish()
        messages = await conversation(stream)
        assert await receive(stream) is None
    turns = [message for message in messages if isinstance(message, TurnEvent)]
    assert turns[0] == TurnEvent(ProviderInput.START)
    ends = [message.text for message in turns if message.kind is ProviderInput.END]
    assert ends == ["w1 w2", " w3"]


async def test_wrong_key_is_credentials_error() -> None:
    async with local_server(api_keys=frozenset({"sk_car_another"})) as server:
        error = await refusal(Endpoint(server.url, VERSION, KEY))
        assert type(error) is SttCredentialsError
        assert error.status == 401
        assert error.request_id
        assert "Unauthorized" in str(error)
        assert str(error).startswith("HTTP 401 ")
        assert server.open_connections == 0


async def test_refusal_of_older_version_is_readable() -> None:
    async with local_server(api_keys=frozenset({"sk_car_another"})) as server:
        error = await refusal(Endpoint(server.url, "2025-04-16", KEY))
    assert type(error) is SttCredentialsError
    assert str(error).startswith("HTTP 401 Unauthorized: ")
    assert error.request_id, "taken from the header"


async def test_concurrency_limit_is_busy_error() -> None:
    async with local_server(max_connections=1) as server:
        service = Endpoint(server.url, VERSION, KEY)
        async with await CARTESIA.open(service, PHONE):
            error = await refusal(service)
        assert type(error) is SttBusyError
        assert (error.status, error.code) == (429, "concurrency_limited")
        await _until(lambda: server.open_connections == 0)
        async with await CARTESIA.open(service, PHONE):
            pass


@pytest.mark.parametrize(
    ("changed", "code", "expected"),
    [
        ({"model": "ink-whisper"}, "model_not_found", "model"),
        ({"turn": TurnConfig(turn_end_threshold=0.05, turn_start_threshold=0.5)}, "", "threshold"),
        ({"keyterms": ("x" * 1_201,)}, "", "keyterm"),
        ({"sample_rate": 1}, "", "sample"),
    ],
)
async def test_wrong_request_is_permanent_error(
    changed: dict[str, Any], code: str, expected: str
) -> None:
    async with local_server() as server:
        error = await refusal(
            Endpoint(server.url, VERSION, KEY), msgspec.structs.replace(PHONE, **changed)
        )
        (seen,) = server.connections
        await _until(lambda: seen.closed_at is not None)
    assert type(error) is SttPermanentError
    assert (error.status, error.code) == (400, code)
    assert error.request_id == seen.request_id
    assert expected in str(error).lower()


async def test_wrong_path_or_version_is_permanent_error() -> None:
    async with local_server() as server:
        for url, version, status in [
            (f"{server.url}s", VERSION, 404),
            (server.url, "yesterday", 400),
        ]:
            error = await refusal(Endpoint(url, version, KEY))
            assert type(error) is SttPermanentError
            assert error.status == status


async def test_refused_connection_is_transient_error() -> None:
    async with local_server() as server:
        service = Endpoint(server.url, VERSION, KEY)
    error = await refusal(service)
    assert type(error) is SttTransientError
    assert error.status == 0


# -- connecting to misbehaving providers


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (402, SttCredentialsError),
        (403, SttCredentialsError),
        (422, SttPermanentError),
        (500, SttTransientError),
        (502, SttTransientError),
        (503, SttTransientError),
        (529, SttTransientError),
    ],
)
async def test_refused_upgrade_is_classified_by_status(status: int, kind: type[SttError]) -> None:
    body = json.dumps(
        {"error_code": "a_code", "title": "Title", "message": "why", "request_id": "r9"}
    )

    def process_request(ws: ServerConnection, request: Request) -> Response:
        response = ws.respond(HTTPStatus.OK, body)
        response.status_code = status
        return response

    async with odd_server(sends(), process_request) as service:
        error = await refusal(service)
    assert type(error) is kind
    assert (error.status, error.code, error.request_id) == (status, "a_code", "r9")
    assert str(error) == f"HTTP {status} Title: why"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, '{"title": "Invalid model"}', SttPermanentError),
        (404, '{"error_code": "model_not_found", "title": null}', SttPermanentError),
        (400, "Invalid model: there is none of that name", SttPermanentError),
        # Responses of proxies, load balancers and ingresses.
        (400, "<html><head><title>400 Bad Request</title></head></html>", SttTransientError),
        (404, "\r\n<!DOCTYPE html>\r\n<html></html>", SttTransientError),
        (404, "default backend - 404", SttTransientError),
        (404, '{"detail": "Not Found"}', SttTransientError),
        (404, "", SttTransientError),
        # The request is too long for the responding server, and stays so.
        (414, "<html></html>", SttPermanentError),
        (403, "<html></html>", SttCredentialsError),
    ],
)
async def test_refusal_by_intermediary_is_not_permanent(
    status: int, body: str, kind: type[SttError]
) -> None:
    async with odd_server(sends(), refuses(status, body, "text/html")) as service:
        error = await refusal(service)
    assert type(error) is kind
    assert error.status == status


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", "HTTP 503"),
        ("upstream connect error", "HTTP 503 upstream connect error"),
        ("<html>" + "x" * 5_000, "HTTP 503 <html>" + "x" * 194),
        ('"a string"', 'HTTP 503 "a string"'),
        ("[]", "HTTP 503 []"),
        ('{"title": 5}', 'HTTP 503 {"title": 5}'),
        ('{"error_code": null, "title": null}', "HTTP 503"),
        ('{"message": "why", "new": {"field": []}}', "HTTP 503 why"),
    ],
)
async def test_any_refusal_body_is_readable(body: str, expected: str) -> None:
    async with odd_server(sends(), refuses(503, body, "text/html")) as service:
        error = await refusal(service)
    assert type(error) is SttTransientError
    assert str(error) == expected
    assert (error.code, error.request_id) == ("", "from-the-header")


async def test_quota_error_is_recognised_by_code() -> None:
    body = json.dumps({"error_code": "quota_exceeded", "title": "No credits", "message": ""})
    async with odd_server(sends(), refuses(429, body)) as service:
        assert type(await refusal(service)) is SttCredentialsError


@pytest.mark.parametrize(
    ("first", "kind", "status"),
    [
        ({"type": "error"}, SttTransientError, 500),
        (
            {"type": "error", "status_code": 503, "title": "t", "message": "m"},
            SttTransientError,
            503,
        ),
        ({"type": "error", "status_code": 401}, SttCredentialsError, 401),
        ({"type": "error", "status_code": 429}, SttBusyError, 429),
        ({"type": "error", "status_code": 400, "error_code": None}, SttPermanentError, 400),
        ({"type": "error", "status_code": "401"}, SttCredentialsError, 401),
        ({"type": "error", "status_code": 413}, SttPermanentError, 413),
        ({"type": "turn.start"}, SttTransientError, 0),
    ],
)
async def test_first_message_other_than_connected(
    first: dict[str, Any] | str | bytes, kind: type[SttError], status: int
) -> None:
    async with odd_server(sends(first)) as service:
        error = await refusal(service)
    assert type(error) is kind
    assert error.status == status


async def test_unknown_message_can_precede_connected() -> None:
    hello = {"type": "hello", "region": "us"}
    async with (
        odd_server(sends(hello, hello, CONNECTED)) as service,
        await CARTESIA.open(service, PHONE) as stream,
    ):
        assert (stream.request_id, stream.ignored) == ("r1", 2)


async def test_unreadable_messages_before_connected_are_skipped() -> None:
    defects: list[str] = []
    first = (
        "not JSON",
        {"no": "type"},
        b"\xff\xfe",
        "",
        "[]",
        '{"type":"connected","request_id":7}',
    )
    async with (
        odd_server(sends(*first)) as service,
        await CARTESIA.open(service, PHONE, Notes(defects.append)) as stream,
    ):
        assert (stream.request_id, stream.ignored) == ("", 0)
    assert len(defects) == len(first)


async def test_unreadable_messages_of_session_are_skipped() -> None:
    defects: list[str] = []
    expected = ("[1]", "{", b"\x00\x01", {"type": 5}, '{"type":"turn.end","transcript":"\\ud83d"}')
    async with (
        odd_server(sends(CONNECTED, *expected)) as service,
        await CARTESIA.open(service, PHONE, Notes(defects.append)) as stream,
    ):
        assert await receive(stream) == TurnEvent(ProviderInput.END, "\ufffd")
    assert len(defects) == len(expected)
    assert not any("ud83d" in defect or "\ufffd" in defect for defect in defects)


async def test_error_without_readable_status_keeps_socket() -> None:
    message = {"type": "error", "status_code": [5], "message": f"{KEY} is no key"}
    async with (
        odd_server(sends(CONNECTED, message)) as service,
        await CARTESIA.open(service, PHONE) as stream,
    ):
        assert await receive(stream) == ProviderError("stt_error", "[key] is no key")
        assert stream.socket.open


async def test_invalid_frames_are_provider_error() -> None:
    async def handler(ws: ServerConnection) -> None:
        await ws.send(json.dumps(CONNECTED))
        ws.transport.write(b"\xc1\x00")  # a reserved bit
        await ws.wait_closed()

    async with odd_server(handler) as service, await CARTESIA.open(service, PHONE) as stream:
        with pytest.raises(SttProtocolError) as fault:
            await receive(stream)
    assert fault.value.status == 1006


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1000, SttTransientError),
        (1001, SttTransientError),
        (1008, SttPermanentError),
        (1011, SttTransientError),
    ],
)
async def test_close_instead_of_connected(code: int, kind: type[SttError]) -> None:
    async with odd_server(hangs_up(code, "because")) as service:
        error = await refusal(service)
    assert type(error) is kind
    assert error.status == code
    assert "because" in str(error)


async def test_missing_connected_times_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "worker.stt.stream.OPEN_TIMEOUT_S", 1.0
    )  # the upgrade takes part of the timeout
    codes: list[int | None] = []

    async def handler(ws: ServerConnection) -> None:
        await ws.wait_closed()
        codes.append(ws.close_code)

    async with odd_server(handler) as service:
        error = await refusal(service)
        await _until(lambda: bool(codes))
    assert type(error) is SttTransientError
    assert codes == [1006], "nothing stays open"


async def test_unanswered_upgrade_times_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.stt.stream.OPEN_TIMEOUT_S", 0.2)
    gone = anyio.Event()

    async def silent(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    await stream.receive()
            gone.set()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, silent)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        error = await refusal(Endpoint(f"ws://127.0.0.1:{port}/stt", VERSION, KEY))
        with anyio.fail_after(PATIENCE_S):
            await gone.wait()
        tasks.cancel_scope.cancel()
    assert type(error) is SttTransientError
    assert "0.2 s" in str(error)


async def test_cancelled_wait_for_connected_leaves_no_socket() -> None:
    codes: list[int | None] = []

    async def handler(ws: ServerConnection) -> None:
        scope.cancel()
        await ws.wait_closed()
        codes.append(ws.close_code)

    async with odd_server(handler) as service:
        with anyio.CancelScope() as scope:
            await CARTESIA.open(service, PHONE)
        assert scope.cancelled_caught
        await _until(lambda: bool(codes))
    assert codes == [1006]


# -- in a session


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"type": "turn.start", "turn_id": 7}, TurnEvent(ProviderInput.START)),
        ({"type": "turn.update", "transcript": " a"}, TurnEvent(ProviderInput.UPDATE, " a")),
        ({"type": "turn.end", "transcript": ""}, TurnEvent(ProviderInput.END, "")),
        ({"type": "turn.end"}, TurnEvent(ProviderInput.END)),
        ({"type": "turn.update", "transcript": None}, TurnEvent(ProviderInput.UPDATE)),
        ({"type": "turn.new", "transcript": 5}, UnknownMessage()),
        (
            {"type": "error", "status_code": 400, "message": "no such command"},
            ProviderError("stt_error", "no such command", 400),
        ),
        (
            {"type": "error", "status_code": 422, "title": None},
            ProviderError("stt_error", "the provider gave no reason", 422),
        ),
    ],
)
async def test_messages_of_session_are_received(message: dict[str, Any], expected: Event) -> None:
    async with (
        odd_server(sends(CONNECTED, message)) as service,
        await CARTESIA.open(service, PHONE) as stream,
    ):
        assert stream.request_id == "r1"
        assert await receive(stream) == expected


@pytest.mark.parametrize(
    ("message", "kind", "status"),
    [
        ({"type": "error", "status_code": 500, "title": "Oh"}, SttTransientError, 500),
        ({"type": "error", "status_code": 503}, SttTransientError, 503),
        ({"type": "error"}, SttTransientError, 500),
        ({"type": "error", "status_code": 401, "message": None}, SttCredentialsError, 401),
        ({"type": "error", "status_code": 402}, SttCredentialsError, 402),
        (
            {"type": "error", "status_code": 400, "error_code": "quota_exceeded"},
            SttCredentialsError,
            400,
        ),
        ({"type": "error", "status_code": 429}, SttBusyError, 429),
        ({"type": "error", "status_code": "503"}, SttTransientError, 503),
        ({"type": "error", "status_code": 503.0, "message": 5}, SttTransientError, 503),
        ({"type": "error", "status_code": 413}, SttTooBigError, 413),
        ({"type": "error", "status_code": 400, "title": "Message too large"}, SttTooBigError, 400),
    ],
)
async def test_message_ends_session(
    message: dict[str, Any], kind: type[SttError], status: int
) -> None:
    async with (
        odd_server(sends(CONNECTED, message)) as service,
        await CARTESIA.open(service, PHONE) as stream,
    ):
        with pytest.raises(SttError) as fault:
            await receive(stream)
    assert type(fault.value) is kind
    assert fault.value.status == status


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (1001, "Idle timeout", SttTransientError),
        (1002, "", SttPermanentError),
        (1003, "", SttPermanentError),
        (1007, "", SttPermanentError),
        (1008, "Invalid turn thresholds", SttPermanentError),
        (1008, "frame is too big", SttTooBigError),
        (1009, "", SttTooBigError),
        (1011, "", SttTransientError),
        (1012, "Service restart", SttTransientError),
    ],
)
async def test_close_ends_session(code: int, reason: str, kind: type[SttError]) -> None:
    last = {"type": "turn.end", "transcript": "a"}
    async with (
        odd_server(hangs_up(code, reason, CONNECTED, last)) as service,
        await CARTESIA.open(service, PHONE) as stream,
    ):
        assert await receive(stream) == TurnEvent(ProviderInput.END, "a")
        with pytest.raises(SttError) as fault:
            await receive(stream)
    assert type(fault.value) is kind
    assert (fault.value.status, fault.value.request_id) == (code, "r1")
    assert reason in str(fault.value)


async def test_close_1000_is_end() -> None:
    async with (
        odd_server(hangs_up(1000, "", CONNECTED)) as service,
        await CARTESIA.open(service, PHONE) as stream,
    ):
        assert await receive(stream) is None
        assert await receive(stream) is None


async def test_close_without_code_is_end() -> None:
    async def handler(ws: ServerConnection) -> None:
        await ws.send(json.dumps(CONNECTED))
        ws.protocol.send_close()
        ws.transport.writelines(ws.protocol.data_to_send())
        await ws.wait_closed()

    async with odd_server(handler) as service, await CARTESIA.open(service, PHONE) as stream:
        assert await receive(stream) is None


async def test_commands_are_text_and_audio_is_binary() -> None:
    received: list[str | bytes] = []

    async def handler(ws: ServerConnection) -> None:
        await ws.send(json.dumps(CONNECTED))
        received.extend([await ws.recv() for _ in range(4)])
        await ws.close()

    async with odd_server(handler) as service, await CARTESIA.open(service, PHONE) as stream:
        stream.send_audio(b"\x00\x01")
        stream.send_config(TurnConfig(turn_end_threshold=0.1, turn_end_timeout_ms=8000.0))
        stream.send_config(TurnConfig())
        stream.finish()
        assert await receive(stream) is None
    audio, *commands = received
    assert audio == b"\x00\x01"
    assert [json.loads(command) for command in commands] == [
        {"type": "config", "turn": {"end_threshold": 0.1, "end_timeout_ms": 8000.0}},
        {"type": "config", "turn": {}},
        {"type": "close"},
    ]


async def test_leaving_with_error_drops_connection() -> None:
    async with local_server() as server:
        with pytest.raises(SttTransientError):
            async with await CARTESIA.open(Endpoint(server.url, VERSION, KEY), PHONE):
                raise SttTransientError("lost")
        (seen,) = server.connections
        await _until(lambda: seen.closed_at is not None)
        assert seen.close_code == 1006


async def test_leaving_by_cancellation_drops_connection() -> None:
    async with local_server() as server:
        with anyio.CancelScope() as scope:
            async with await CARTESIA.open(Endpoint(server.url, VERSION, KEY), PHONE) as stream:
                scope.cancel()
                await receive(stream)
        (seen,) = server.connections
        await _until(lambda: seen.closed_at is not None)
        assert seen.close_code == 1006


async def _until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not condition():
            await anyio.sleep(0.005)
