"""Requests and responses of the HTTP port, with `http.client` and raw sockets."""

import http.client
import logging
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from anyio.to_thread import run_sync

from tests.unit.ingest.wire import (
    BINARY,
    FAST,
    GET,
    UPGRADE,
    answer_ok,
    echo,
    frame,
    open_websocket,
    receive_all,
    reset,
    send_forever,
    status,
    talk,
)
from worker.errors import SettingsError
from worker.ingest.http import Exchange, Handler, Limits, PeerGoneError, serve_http

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


def _request(port: int, method: str, target: str) -> tuple[int, bytes, dict[str, str]]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    client.request(method, target)
    response = client.getresponse()
    found = response.status, response.read(), dict(response.headers)
    client.close()
    return found


async def _ask(port: int, target: str, method: str = "GET") -> tuple[int, bytes, dict[str, str]]:
    return await run_sync(partial(_request, port, method, target))


async def test_response_has_its_body_and_headers() -> None:
    async def handle(exchange: Exchange) -> None:
        assert exchange.request.peer == "127.0.0.1"
        line = [("Cache-Control", "max-age=5"), ("X-One", "1")]
        await exchange.respond(418, b"body", "text/x", line)

    async with serve_http("127.0.0.1", 0, handle) as port:
        code, body, headers = await _ask(port, "/")
    assert (code, body, headers["X-One"]) == (418, b"body", "1")
    assert (headers["Content-Type"], headers["Cache-Control"]) == ("text/x", "max-age=5")
    assert headers["Connection"] == "close"


async def test_response_without_content_has_no_body() -> None:
    async def handle(exchange: Exchange) -> None:
        await exchange.respond(204, b"ignored", "text/plain")

    async with serve_http("127.0.0.1", 0, handle) as port:
        answer = await talk(port, GET)
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-" not in answer.replace(b"X-Content-Type", b"")


async def test_query_is_decoded() -> None:
    found: dict[str, list[str]] = {}

    async def handle(exchange: Exchange) -> None:
        found.update({k: list(v) for k, v in exchange.request.query.items()})
        await exchange.respond(200, exchange.request.path.encode(), "text/plain")

    async with serve_http("127.0.0.1", 0, handle) as port:
        _, path, _ = await _ask(port, "/a?k=a%20b+c&k=%C3%A9&empty=&bad=%ff%zz")
    assert path == b"/a"
    assert found == {"k": ["a b c", "é"], "empty": [""], "bad": ["�%zz"]}


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"GET http://a/x HTTP/1.1\r\nHost: A\r\n\r\n", 200),
        (b"GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\x1b[2J HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 405),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: " + b"x" * 9_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: " + b"b" * 8_000 + b"\r\n" * 5, 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"A: " + b"b" * 8_000 + b"\r\n") * 5 + b"\r\n", 431),
        (GET + b"\r\n", 400),
        (GET + GET, 400),
        (GET + frame(BINARY, b"ab"), 400),
        (GET + frame(BINARY, b"ab")[:2], 400),
        (UPGRADE + frame(BINARY, b"ab"), 400),
    ],
)
async def test_request_is_answered_with_its_status(request_bytes: bytes, expected: int) -> None:
    async with serve_http("127.0.0.1", 0, answer_ok) as port:
        answer = await talk(port, request_bytes)
        assert status(answer) == expected
        assert status(await talk(port, GET)) == 200


async def test_head_is_refused_without_a_body() -> None:
    async with serve_http("127.0.0.1", 0, answer_ok) as port:
        answer = await talk(port, GET.replace(b"GET", b"HEAD"))
        code, body, headers = await _ask(port, "/", "HEAD")
    assert answer.endswith(b"\r\n\r\n")
    assert (code, body, headers["Allow"]) == (405, b"", "GET")


async def test_request_in_single_bytes_is_answered() -> None:
    async with serve_http("127.0.0.1", 0, answer_ok) as port:
        answer = await talk(port, *(GET[i : i + 1] for i in range(len(GET))))
    assert status(answer) == 200


async def test_data_after_a_request_is_not_a_second_one() -> None:
    targets = []

    async def handle(exchange: Exchange) -> None:
        targets.append(exchange.request.target)
        await exchange.respond(200, b"", "text/plain")

    async with serve_http("127.0.0.1", 0, handle) as port:
        assert (await talk(port, GET, GET)).count(b"HTTP/1.1") == 1
    assert targets == ["/"]


async def test_half_closed_client_gets_its_answer() -> None:
    async with (
        serve_http("127.0.0.1", 0, answer_ok) as port,
        await anyio.connect_tcp("127.0.0.1", port) as stream,
    ):
        await stream.send(GET)
        await stream.send_eof()
        assert status(await receive_all(stream)) == 200


async def test_plain_request_gets_426_from_a_websocket_route() -> None:
    async with serve_http("127.0.0.1", 0, echo) as port:
        code, _, headers = await _ask(port, "/")
    assert (code, headers["Upgrade"]) == (426, "websocket")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"HTTP/1.1", b"HTTP/1.0", 505),
        (b"Version: 13", b"Version: 8", 400),
        (b"Key: MDEy", b"Key: ???", 400),
        (b"Version: 13", b"Version: 13\r\nSec-WebSocket-Protocol: a b,,\x80", 400),
    ],
)
async def test_invalid_handshake_is_refused(old: bytes, new: bytes, expected: int) -> None:
    async with serve_http("127.0.0.1", 0, echo) as port:
        assert status(await talk(port, UPGRADE.replace(old, new))) == expected
        async with await open_websocket(port):
            pass


async def test_handler_error_is_500_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(exchange: Exchange) -> None:
        if exchange.request.path == "/bad":
            raise RuntimeError("bug")
        await answer_ok(exchange)

    async with serve_http("127.0.0.1", 0, handle) as port:
        code, _, _ = await _ask(port, "/bad?token=secret")
        assert (await _ask(port, "/"))[0] == 200
    assert code == 500
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == "/bad: internal error in the handler"


BAD_HEADER = [("X-One", "a\r\nb")]


async def _bad_response(exchange: Exchange) -> None:
    await exchange.respond(200, b"", "text/plain", BAD_HEADER)


async def _bad_stream(exchange: Exchange) -> None:
    async with exchange.stream("text/plain", BAD_HEADER):
        pass


async def _bad_handshake(exchange: Exchange) -> None:
    await exchange.accept(headers=BAD_HEADER)


@pytest.mark.parametrize("answer", [_bad_response, _bad_stream, _bad_handshake])
async def test_answer_that_cannot_be_sent_is_500(answer: Handler) -> None:
    async with serve_http("127.0.0.1", 0, answer) as port:
        assert status(await talk(port, UPGRADE)) == 500


async def test_handler_without_an_answer_is_500() -> None:
    async def handle(exchange: Exchange) -> None:
        pass

    async with serve_http("127.0.0.1", 0, handle) as port:
        assert (await _ask(port, "/"))[0] == 500


async def test_stream_sends_its_parts_in_order() -> None:
    async def handle(exchange: Exchange) -> None:
        async with exchange.stream("text/event-stream", [("X-One", "1")]) as write:
            for number in range(3):
                await write(b"data: %d\n\n" % number)
                await anyio.lowlevel.checkpoint()

    async with serve_http("127.0.0.1", 0, handle) as port:
        code, body, headers = await _ask(port, "/")
    assert (code, body) == (200, b"data: 0\n\ndata: 1\n\ndata: 2\n\n")
    assert (headers["Content-Type"], headers["X-One"]) == ("text/event-stream", "1")


async def test_stream_ends_when_its_client_leaves() -> None:
    over = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        try:
            async with exchange.stream("text/event-stream") as write:
                while True:
                    await write(b": \n\n")
                    await anyio.sleep(0.01)
        except PeerGoneError:
            over.set()
            raise

    async with serve_http("127.0.0.1", 0, handle) as port:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(GET)
            await stream.receive()
        await over.wait()


async def test_stream_that_is_not_read_is_dropped() -> None:
    over = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        try:
            async with exchange.stream("text/event-stream") as write:
                while True:
                    await write(b"x" * 65_536)
        except PeerGoneError:
            over.set()

    async with (
        serve_http("127.0.0.1", 0, handle, FAST) as port,
        await anyio.connect_tcp("127.0.0.1", port) as stream,
    ):
        await stream.send(GET)
        await over.wait()


async def test_slow_reader_gets_the_whole_answer() -> None:
    size = 3_000_000

    async def handle(exchange: Exchange) -> None:
        await exchange.respond(200, b"x" * size, "text/plain")

    async with (
        serve_http("127.0.0.1", 0, handle) as port,
        await anyio.connect_tcp("127.0.0.1", port) as stream,
    ):
        await stream.send(GET)
        received = 0
        while received < size:
            received += len(await stream.receive(100_000))
            await anyio.sleep(0.01)


async def test_slow_request_is_closed_with_408() -> None:
    async with (
        serve_http("127.0.0.1", 0, answer_ok, FAST) as port,
        await anyio.connect_tcp("127.0.0.1", port) as stream,
    ):
        await stream.send(GET[:-2])
        answer = b""
        while not answer:
            with anyio.move_on_after(0.02):
                answer = await stream.receive()
            if not answer:
                await stream.send(b"X")
    assert status(answer) == 408


async def test_silent_connection_is_closed_with_408() -> None:
    async with serve_http("127.0.0.1", 0, answer_ok, FAST) as port:
        assert status(await talk(port)) == 408


async def test_peer_that_stays_after_its_answer_is_dropped() -> None:
    async with (
        serve_http("127.0.0.1", 0, answer_ok, FAST) as port,
        await anyio.connect_tcp("127.0.0.1", port) as stream,
    ):
        await stream.send(GET)
        await receive_all(stream)
        with pytest.raises(anyio.BrokenResourceError):
            await send_forever(stream, b"x" * 1_000)


async def test_oldest_unanswered_connection_is_closed_at_the_limit() -> None:
    async with serve_http("127.0.0.1", 0, answer_ok, Limits(max_unanswered=2)) as port:
        first = await anyio.connect_tcp("127.0.0.1", port)
        others = [await anyio.connect_tcp("127.0.0.1", port) for _ in range(2)]
        assert await receive_all(first) == b""
        await others[0].send(GET)
        assert status(await receive_all(others[0])) == 200
        for stream in [first, *others]:
            await stream.aclose()


async def test_request_above_the_limit_is_503_but_not_a_probe() -> None:
    async def handle(exchange: Exchange) -> None:
        await (answer_ok if exchange.request.path == "/livez" else echo)(exchange)

    async with serve_http("127.0.0.1", 0, handle, Limits(max_connections=1)) as port:
        async with await open_websocket(port):
            code, _, headers = await _ask(port, "/raw")
            assert (code, headers["Retry-After"]) == (503, "1")
            assert (await _ask(port, "/livez"))[0] == 200
        with anyio.fail_after(30):
            while (await _ask(port, "/raw"))[0] == 503:
                await anyio.sleep(0.01)


async def test_handler_counts_until_it_ends() -> None:
    entered, release = anyio.Event(), anyio.Event()

    async def handle(exchange: Exchange) -> None:
        entered.set()
        await release.wait()

    async with serve_http("127.0.0.1", 0, handle, Limits(max_connections=1)) as port:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(GET)
            await entered.wait()
        assert status(await talk(port, GET)) == 503
        release.set()


async def _stream(exchange: Exchange) -> None:
    async with exchange.stream("text/plain") as write:
        await write(b"x")


@pytest.mark.parametrize("respond", [answer_ok, _stream, echo])
async def test_peer_that_resets_before_its_answer_ends_alone(
    respond: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    entered, release, over = anyio.Event(), anyio.Event(), anyio.Event()

    async def handle(exchange: Exchange) -> None:
        entered.set()
        await release.wait()
        try:
            await respond(exchange)
        finally:
            over.set()

    async with serve_http("127.0.0.1", 0, handle) as port:
        stream = await anyio.connect_tcp("127.0.0.1", port)
        await stream.send(UPGRADE)
        await entered.wait()
        await reset(stream)
        release.set()
        await over.wait()
        assert status(await talk(port, UPGRADE + b"x")) == 400
    assert caplog.messages == []


async def test_stop_answers_what_is_open() -> None:
    entered = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        entered.set()
        await anyio.sleep_forever()

    async with serve_http("127.0.0.1", 0, handle) as port:
        idle = await anyio.connect_tcp("127.0.0.1", port)
        waiting = await anyio.connect_tcp("127.0.0.1", port)
        await waiting.send(GET)
        await entered.wait()
    assert status(await receive_all(waiting)) == 503
    assert await receive_all(idle) == b""
    await idle.aclose()
    await waiting.aclose()


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.name.invalid"])
async def test_address_that_cannot_be_used_is_a_clear_error(host: str) -> None:
    async with serve_http("127.0.0.1", 0, answer_ok) as port:
        with pytest.raises(SettingsError, match=r"cannot listen on .*; choose another address"):
            async with serve_http(host, port, answer_ok):
                pass
