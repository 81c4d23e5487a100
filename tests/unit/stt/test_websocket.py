"""The socket against real servers on loopback: correct, refusing and broken ones."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from tests.support.polling import PATIENCE_S
from worker.stt.frames import MAX_MESSAGE_BYTES, LenientProtocol
from worker.stt.websocket import (
    SocketClosed,
    WebSocketClient,
    open_socket,
)

Handler = Callable[[ServerConnection], Awaitable[None]]
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def websocket_server(
    handler: Handler, process_request: Callable[[ServerConnection, Request], Response] | None = None
) -> AsyncIterator[str]:
    """A correct WebSocket server; yields its URL."""
    async with serve(
        handler, "127.0.0.1", 0, max_size=2**24, process_request=process_request
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}/stt/turns/websocket"


@asynccontextmanager
async def tcp_server(peer: Peer) -> AsyncIterator[str]:
    """A server that handles the raw bytes of a connection; yields a URL."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await peer(reader, writer)
        except ConnectionError:
            pass  # the client left first
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/stt"
    finally:
        server.close()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[WebSocketClient]:
    with anyio.fail_after(PATIENCE_S):
        socket = await open_socket(url, {"X-API-Key": "sk_car_test"})
        try:
            yield socket
        finally:
            socket.abort("test over")
            await gone(socket)


async def gone(socket: WebSocketClient) -> None:
    """Wait until no more data arrives."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            try:
                await socket.receive()
            except SocketClosed:
                return


async def closing(socket: WebSocketClient) -> tuple[int, str]:
    """Return how the socket was closed, after reading all earlier messages."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            try:
                await socket.receive()
            except SocketClosed as end:
                return end.code, end.reason


async def text(socket: WebSocketClient) -> str:
    """Return the text of the next message."""
    data, _ = await socket.receive()
    return data.decode()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not condition():
            await anyio.sleep(0.005)


async def _idle(ws: ServerConnection) -> None:
    await ws.wait_closed()


async def _upgraded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> ServerProtocol:
    """Answer the upgrade by hand, without further messages."""
    protocol = ServerProtocol(max_size=2**24)
    protocol.receive_data(await reader.readuntil(b"\r\n\r\n"))
    (request,) = protocol.events_received()
    assert isinstance(request, Request)
    protocol.send_response(protocol.accept(request))
    writer.writelines(protocol.data_to_send())
    return protocol


# -- the upgrade


async def test_upgrade_has_headers_and_no_compression() -> None:
    seen: list[Request] = []

    async def handler(ws: ServerConnection) -> None:
        assert ws.request is not None
        seen.append(ws.request)
        await ws.send("hello")
        await ws.wait_closed()

    async with (
        websocket_server(handler) as url,
        connected(url + "?model=ink-2&keyterm=a%20b") as socket,
    ):
        assert socket.open
        assert await text(socket) == "hello"
    (request,) = seen
    assert request.path == "/stt/turns/websocket?model=ink-2&keyterm=a%20b"
    assert request.headers["X-API-Key"] == "sk_car_test"
    assert "Sec-WebSocket-Extensions" not in request.headers


@pytest.mark.parametrize("status", [301, 400, 401, 402, 403, 404, 429, 500, 503])
async def test_refusal_has_status_headers_and_body(status: int) -> None:
    def refuse(ws: ServerConnection, request: Request) -> Response:
        response = ws.respond(HTTPStatus(status), '{"title": "No"}')
        response.headers["X-Request-Id"] = "r1"
        return response

    async with websocket_server(_idle, refuse) as url:
        with pytest.raises(InvalidStatus) as refused:
            await open_socket(url, {"X-API-Key": "sk_car_secret"})
    assert refused.value.response.status_code == status
    assert refused.value.response.body == b'{"title": "No"}'
    assert refused.value.response.headers["X-Request-Id"] == "r1"
    assert "sk_car_secret" not in repr(refused.value) + str(refused.value)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\nThe body ends with the connection", 33),
        (
            b"HTTP/1.1 502 Bad Gateway\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
            4,
        ),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", 0),
        (b"HTTP/1.1 204 \r\n\r\n", 0),
    ],
)
async def test_refusal_of_proxy_is_read(answer: bytes, body: int) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with tcp_server(peer) as url:
        with pytest.raises(InvalidStatus) as refused:
            await open_socket(url, {})
    assert refused.value.response.status_code == int(answer.split()[1])
    assert len(refused.value.response.body or b"") == body


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 101 Sw",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00" * 100,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: bm90IHRoZSBvbmUgdG8gZXhwZWN0IQ==\r\n\r\n"
        ),
        b"HTTP/1.1 500 No\r\nContent-Length: 99999999\r\n\r\nbut the rest never comes",
        b"HTTP/1.1 500 " + b"x" * 100_000,
    ],
)
async def test_invalid_response_is_os_error(answer: bytes) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with tcp_server(peer) as url:
        with anyio.fail_after(PATIENCE_S), pytest.raises(OSError, match="the upgrade failed"):
            await open_socket(url, {})


async def test_closed_port_is_os_error() -> None:
    async with tcp_server(lambda reader, writer: checkpoint()) as url:
        pass
    with pytest.raises(OSError, match="Connect call failed"):
        await open_socket(url, {})


async def _until_gone(reader: asyncio.StreamReader) -> None:
    """Wait until the client is gone."""
    with suppress(ConnectionResetError):  # aborted, so that no socket lingers
        while await reader.read(1024):
            pass


async def test_cancelled_handshake_leaves_no_socket() -> None:
    left = anyio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        scope.cancel()
        await _until_gone(reader)
        left.set()

    async with tcp_server(peer) as url:
        with anyio.CancelScope() as scope:
            await open_socket(url, {})
        assert scope.cancelled_caught
        with anyio.fail_after(PATIENCE_S):
            await left.wait()


async def test_cancelled_connect_leaves_no_socket() -> None:
    """At any point: loopback connects at once, or it does not."""
    arrived, left = 0, 0

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived, left
        arrived += 1
        await _until_gone(reader)
        left += 1

    async with tcp_server(peer) as url:
        for turns in range(6):
            with anyio.CancelScope() as scope:
                asyncio.get_running_loop().call_soon(_after_turns, turns, scope.cancel)
                await open_socket(url, {})
            assert scope.cancelled_caught
        await anyio.sleep(0.02)
        await until(lambda: left == arrived)


def _after_turns(turns: int, call: Callable[[], None]) -> None:
    """Call after so many iterations of the event loop."""
    if turns:
        asyncio.get_running_loop().call_soon(_after_turns, turns - 1, call)
    else:
        call()


# -- messages


async def test_fragments_form_one_message() -> None:
    euro = "€".encode()

    async def handler(ws: ServerConnection) -> None:
        await ws.send(["{", '"type"', ":1}"])
        await ws.send([euro[:1], euro[1:2], euro[2:]], text=True)
        await ws.send("")
        await ws.send(b"\xffbinary")
        await ws.wait_closed()

    async with websocket_server(handler) as url, connected(url) as socket:
        assert await text(socket) == '{"type":1}'
        assert await text(socket) == "€"
        assert await text(socket) == ""
        assert await text(socket) == "�binary"


async def test_control_frames_between_fragments_are_separate() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = await _upgraded(reader, writer)
        protocol.send_text(b"one ", fin=False)
        protocol.send_ping(b"still there?")
        protocol.send_continuation(b"two ", fin=False)
        protocol.send_pong(b"7")
        protocol.send_continuation(b"three", fin=True)
        writer.writelines(protocol.data_to_send())
        assert await reader.read(1) == b"\x8a"  # the pong
        await reader.read()

    async with tcp_server(peer) as url, connected(url) as socket:
        assert await text(socket) == "one two three"
        assert socket.pongs_received == 0, "no ping was sent"


async def test_bytes_can_arrive_one_by_one() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = await _upgraded(reader, writer)
        protocol.send_text("zwölf".encode())
        protocol.send_close(1001, "Idle timeout")
        for data in protocol.data_to_send():
            for at in range(len(data)):
                writer.write(data[at : at + 1])
                await writer.drain()
                await checkpoint()
        await reader.read()

    async with tcp_server(peer) as url, connected(url) as socket:
        assert await text(socket) == "zwölf"
        assert await closing(socket) == (1001, "Idle timeout")


async def test_message_above_1_mib_is_discarded() -> None:
    async def handler(ws: ServerConnection) -> None:
        await ws.send("x" * MAX_MESSAGE_BYTES)
        await ws.send("x" * (MAX_MESSAGE_BYTES + 1))
        await ws.send("between")
        await ws.send(["x" * MAX_MESSAGE_BYTES, "x", "y"])
        await ws.send("x" * (8 * MAX_MESSAGE_BYTES))
        await ws.send("after")
        await ws.wait_closed()

    async with websocket_server(handler) as url, connected(url) as socket:
        received = [await socket.receive() for _ in range(6)]
        assert socket.open
    assert [(data[:7], bool(defect)) for data, defect in received] == [
        (b"x" * 7, False),
        (b"", True),
        (b"between", False),
        (b"", True),
        (b"", True),
        (b"after", False),
    ]
    assert all("larger than" in defect for _, defect in received if defect)


async def test_large_message_is_not_buffered() -> None:
    """Whatever size its header states."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _upgraded(reader, writer)
        writer.write(b"\x81\x02ok\x81\x7f" + (2**62).to_bytes(8, "big"))
        for _ in range(4):
            writer.write(bytes(MAX_MESSAGE_BYTES))
            await writer.drain()
        await reader.read()

    async with tcp_server(peer) as url, connected(url) as socket:
        assert await text(socket) == "ok"
        began = socket.last_received_at
        await until(lambda: socket.last_received_at > began)
        assert len(socket._protocol.reader.buffer) <= MAX_MESSAGE_BYTES


@pytest.mark.parametrize("opcode", [b"\x81", b"\x82"], ids=["text", "binary"])
async def test_defect_affects_only_its_message(opcode: bytes) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _upgraded(reader, writer)
        writer.write(opcode + b"\x03a\xff." + b"\x81\x01b" + b"\x82\x01c" + b"\x81\x00")
        await reader.read()

    async with tcp_server(peer) as url, connected(url) as socket:
        received = [await socket.receive() for _ in range(4)]
    first = "invalid UTF-8" if opcode == b"\x81" else "binary message"
    a = "a\ufffd.".encode()
    assert received == [(a, first), (b"b", ""), (b"c", "binary message"), (b"", "")]


@pytest.mark.parametrize(
    ("reason", "read"),
    [(b"Idle \xff", "Idle \ufffd"), (b"\xff" * 123, "\ufffd" * 41)],
)
async def test_close_with_invalid_reason_keeps_code(reason: bytes, read: str) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _upgraded(reader, writer)
        writer.write(b"\x88" + bytes([len(reason) + 2]) + (1001).to_bytes(2, "big") + reason)
        await reader.read()

    async with tcp_server(peer) as url, connected(url) as socket:
        assert await closing(socket) == (1001, read)


async def test_audio_and_commands_arrive_as_sent() -> None:
    received: list[str | bytes] = []

    async def handler(ws: ServerConnection) -> None:
        received.extend([await ws.recv(), await ws.recv(), await ws.recv()])
        await ws.send("done")
        await ws.wait_closed()

    async with websocket_server(handler) as url, connected(url) as socket:
        socket.send_binary(bytes(range(256)))
        socket.send_text('{"type":"close"}')
        socket.send_binary(b"")
        assert await text(socket) == "done"
        assert socket.open  # `close` is a message, not a close
    assert received == [bytes(range(256)), '{"type":"close"}', b""]


# -- messages passed by a plain call


class Messages:
    """A handler of messages, which raises or acts at some of them."""

    def __init__(self, **acts: Callable[[], None]) -> None:
        self.received: list[tuple[str, int]] = []
        """Texts, and how many messages arrived with each and follow it."""
        self._acts = acts

    @property
    def texts(self) -> list[str]:
        """The texts alone."""
        return [data for data, _ in self.received]

    def handle(self, data: bytes, _defect: str, _received_at: float, waiting: int) -> None:
        """Record a message, and act."""
        self.received.append((data.decode(), waiting))
        self._acts.get(data.decode(), lambda: None)()


def _fail() -> None:
    raise ZeroDivisionError("a fault put in by the test")


def _texts(*texts: str) -> bytes:
    return b"".join(b"\x81%c%b" % (len(each), each.encode()) for each in texts)


def _open_socket() -> WebSocketClient:
    """An open socket without a transport; the test passes its bytes."""
    return WebSocketClient(
        LenientProtocol(parse_uri("ws://127.0.0.1/"), state=State.OPEN, max_size=None), {}
    )


async def test_messages_are_passed_as_they_arrive() -> None:
    socket, messages = _open_socket(), Messages()
    socket.data_received(_texts("connected", "early"))
    assert (await socket.receive())[0] == b"connected"

    async def listen() -> None:
        with pytest.raises(SocketClosed, match="1001 Bye"):
            await socket.listen(messages.handle)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        assert messages.received == [("early", 0)]
        socket.data_received(_texts("a", "b") + b"\x01\x00\x8a\x00\x80\x01c" + b"\x81")
        assert messages.received[1:] == [("a", 2), ("b", 1), ("c", 0)], "at once"
        socket.data_received(b"\x01d")
        socket.data_received(_texts("e") + b"\x88\x05\x03\xe9Bye" + _texts("after the close"))
        assert messages.received[4:] == [("d", 0), ("e", 0)]
        socket.connection_lost(None)


async def test_arrival_time_is_passed_with_message() -> None:
    socket, times = _open_socket(), list[float]()
    socket.data_received(_texts("a"))
    arrived = socket.last_received_at
    time.sleep(0.002)  # noqa: ASYNC251 - nothing else may run
    socket.data_received(_texts("b"))

    def handle(_data: bytes, _defect: str, received_at: float, _waiting: int) -> None:
        times.append(received_at)

    socket.connection_lost(None)
    with pytest.raises(SocketClosed):
        await socket.listen(handle)
    assert times == [arrived, socket.last_received_at]


@pytest.mark.parametrize("early", [True, False])
async def test_error_of_handler_ends_listen(early: bool) -> None:
    socket, messages = _open_socket(), Messages(b=_fail)
    if early:
        socket.data_received(_texts("a", "b", "c"))
    else:
        asyncio.get_running_loop().call_soon(socket.data_received, _texts("a", "b", "c"))
    with anyio.fail_after(PATIENCE_S), pytest.raises(ZeroDivisionError, match="put in by the test"):
        await socket.listen(messages.handle)
    socket.data_received(_texts("d"))
    assert messages.texts == ["a", "b"], "no message is handled after an error"
    assert [await text(socket), await text(socket)] == ["c", "d"]


async def test_error_of_handler_is_raised_despite_cancellation() -> None:
    socket = _open_socket()
    messages = Messages(a=_fail)

    def arrive() -> None:
        socket.data_received(_texts("a", "b"))
        scope.cancel()

    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(arrive)
        with pytest.raises(ZeroDivisionError):
            await socket.listen(messages.handle)
    assert messages.texts == ["a"]


async def test_no_message_is_handled_after_cancellation() -> None:
    socket, messages = _open_socket(), Messages()
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        await socket.listen(messages.handle)
    assert scope.cancelled_caught
    socket.data_received(_texts("a"))
    socket.connection_lost(None)
    assert messages.texts == []
    assert await text(socket) == "a"


async def test_handler_can_drop_its_socket() -> None:
    async def handler(ws: ServerConnection) -> None:
        ws.transport.write(_texts("a", "b"))
        await ws.wait_closed()

    async with websocket_server(handler) as url, connected(url) as socket:
        messages = Messages(a=lambda: socket.abort("the open turn is stuck"))
        with pytest.raises(SocketClosed, match="1006 the open turn is stuck"):
            await socket.listen(messages.handle)
        assert messages.texts == ["a", "b"], "what has arrived is still handled"


async def test_handler_can_send_on_its_socket() -> None:
    received: list[str | bytes] = []

    async def handler(ws: ServerConnection) -> None:
        await ws.send("a")
        received.extend([await ws.recv(), await ws.recv()])
        await ws.close(1000)

    async with websocket_server(handler) as url, connected(url) as socket:

        def answer() -> None:
            socket.send_binary(b"audio")
            socket.send_text("text")

        with pytest.raises(SocketClosed, match="1000"):
            await socket.listen(Messages(a=answer).handle)
    assert received == [b"audio", "text"]


async def test_pong_does_not_wake_the_listening_task() -> None:
    socket = _open_socket()
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(_pong, socket, scope)
        await socket.listen(Messages().handle)
    assert socket.pongs_received == 0, "no ping was sent"


def _pong(socket: WebSocketClient, scope: anyio.CancelScope) -> None:
    waiter = socket._waiter
    socket.data_received(b"\x8a\x011")
    assert waiter is not None
    assert not waiter.done()
    scope.cancel()


# -- closing


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1000, ""),
        (1001, "Idle timeout"),
        (1008, "Invalid turn thresholds"),
        (1011, ""),
        (1012, "Service restart"),
        (1013, ""),
        (4321, "ä"),
    ],
)
async def test_messages_before_close_are_read_first(code: int, reason: str) -> None:
    async def handler(ws: ServerConnection) -> None:
        await ws.send("one")
        await ws.send("two")
        await ws.close(code, reason)

    async with websocket_server(handler) as url, connected(url) as socket:
        await until(lambda: not socket.open)
        assert await text(socket) == "one"
        assert await text(socket) == "two"
        for _ in range(2):
            with pytest.raises(SocketClosed) as end:
                await socket.receive()
            assert (end.value.code, end.value.reason) == (code, reason or "connection lost")
        socket.send_binary(b"too late")
        socket.send_text("too late")
        socket.send_ping(1)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\x03\xee" + b"going", "invalid close code 1006: going"),
        (b"\x03\xed", "invalid close code 1005"),
        (b"\x13\x88", "invalid close code 5000"),
        (b"\x00\x00" + b"\xff" * 123, "invalid close code 0: "),
        (b"\x03", "close frame of 1 byte"),
    ],
)
async def test_close_with_invalid_code_is_1011(payload: bytes, reason: str) -> None:
    async def handler(ws: ServerConnection) -> None:
        ws.transport.write(b"\x88" + bytes([len(payload)]) + payload)
        await ws.wait_closed()

    async with websocket_server(handler) as url, connected(url) as socket:
        with pytest.raises(SocketClosed) as end:
            await socket.receive()
        assert end.value.code == 1011
        assert end.value.reason.startswith(reason)
        assert not end.value.broken


async def test_close_without_code_is_1005() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = await _upgraded(reader, writer)
        protocol.send_close()
        writer.writelines(protocol.data_to_send())
        await reader.read()

    async with tcp_server(peer) as url, connected(url) as socket:
        assert (await closing(socket))[0] == 1005


async def test_cut_connection_is_1006() -> None:
    async def handler(ws: ServerConnection) -> None:
        await ws.recv()
        ws.transport.abort()

    async with websocket_server(handler) as url, connected(url) as socket:
        socket.send_text("cut")
        assert await closing(socket) == (1006, "connection lost")
        assert not socket.open


TALK = b"".join(
    [b"\x81\x05hello", b"\x01\x02th", b"\x89\x01p", b"\x80\x03ere", b"\x88\x06\x03\xf3Bye!"]
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(TALK) - 1), reset=st.booleans())
async def test_connection_can_be_cut_at_any_byte(at: int, reset: bool) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _upgraded(reader, writer)
        writer.write(TALK[:at])
        await writer.drain()
        if not reset:
            writer.write_eof()
            await reader.read()

    async with tcp_server(peer) as url, connected(url) as socket:
        texts = []

        async def listen() -> None:
            while True:
                texts.append(await text(socket))

        with pytest.raises(SocketClosed, match="1006"):
            await listen()
        assert texts == ["hello", "there"][: len(texts)]
        if not reset:
            assert len(texts) == (at >= 7) + (at >= 19)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x83\x00",  # an unknown opcode
        b"\xc1\x00",  # a reserved bit
        b"\x81\x80\x00\x00\x00\x00",  # masked by a server
        b"\x80\x00",  # a continuation without a first frame
        b"\x89\x7e\x00\x80" + bytes(128),  # a ping that is too long
    ],
)
async def test_protocol_violation_is_1006(frame: bytes) -> None:
    answers: list[bytes] = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _upgraded(reader, writer)
        writer.write(b"\x81\x02ok" + frame)
        answers.append(await reader.read())

    async with tcp_server(peer) as url, connected(url) as socket:
        assert await text(socket) == "ok"
        with pytest.raises(SocketClosed) as end:
            await socket.receive()
        assert (end.value.code, end.value.broken) == (1006, True)
        await until(lambda: bool(answers))
    assert answers[0][0] == 0x88  # the peer receives a close frame


async def test_abort_ends_receive_with_its_reason() -> None:
    async with websocket_server(_idle) as url, connected(url) as socket:
        async with anyio.create_task_group() as tasks:
            ends: list[tuple[int, str]] = []

            async def listen() -> None:
                ends.append(await closing(socket))

            tasks.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            socket.abort("no answer to a ping for 5 s")
            socket.abort("another reason")
        assert ends == [(1006, "no answer to a ping for 5 s")]
        assert not socket.open
        socket.send_binary(b"too late")


async def test_messages_before_abort_are_still_read() -> None:
    async def handler(ws: ServerConnection) -> None:
        await ws.send("one")
        await ws.wait_closed()

    async with websocket_server(handler) as url, connected(url) as socket:
        socket.send_ping(1)
        await until(lambda: socket.pongs_received == 1)
        socket.abort("enough")
        assert await text(socket) == "one"
        assert await closing(socket) == (1006, "enough")


async def test_close_sends_1000_to_peer() -> None:
    codes: list[int | None] = []

    async def handler(ws: ServerConnection) -> None:
        await ws.send("unread")
        await ws.wait_closed()
        codes.append(ws.close_code)

    async with websocket_server(handler) as url, connected(url) as socket:
        await socket.aclose()
        assert not socket.open
        await socket.aclose()
        await until(lambda: bool(codes))
    assert codes == [1000]


async def test_peer_that_ignores_close_is_dropped() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _upgraded(reader, writer)
        await reader.read()

    async with tcp_server(peer) as url, connected(url) as socket:
        await socket.aclose()
        await until(lambda: not socket.open)
        assert (await closing(socket))[0] == 1006


async def test_cancelled_close_drops_connection() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _upgraded(reader, writer)
        await reader.read(2)
        scope.cancel()
        await reader.read()

    async with tcp_server(peer) as url, connected(url) as socket:
        with anyio.CancelScope() as scope:
            await socket.aclose()
        assert scope.cancelled_caught
        assert await closing(socket) == (1006, "closing")


# -- liveness


async def test_answered_pings_are_counted() -> None:
    async def handler(ws: ServerConnection) -> None:
        await ws.pong(b"")
        await ws.pong(b"unasked")
        await ws.pong(b"-1")
        await ws.wait_closed()

    async with websocket_server(handler) as url, connected(url) as socket:
        assert socket.pongs_received == 0
        socket.send_ping(1)
        await until(lambda: socket.pongs_received == 1)
        socket.send_ping(2)
        socket.send_ping(3)
        await until(lambda: socket.pongs_received == 3)


async def test_late_pong_answers_all_earlier_pings() -> None:
    async def handler(ws: ServerConnection) -> None:
        await ws.recv()
        await ws.pong(b"2")
        await ws.pong(b"9")
        await ws.send("both sent")
        await ws.wait_closed()

    async with websocket_server(handler) as url, connected(url) as socket:
        socket.send_ping(3)
        await until(lambda: socket.pongs_received == 3)
        socket.send_text("go on")
        await socket.receive()
        assert socket.pongs_received == 3, "neither fewer nor more than was asked"


async def test_pings_of_provider_are_answered() -> None:
    async def handler(ws: ServerConnection) -> None:
        await (await ws.ping(b"alive?"))
        await ws.send("answered")
        await ws.wait_closed()

    async with websocket_server(handler) as url, connected(url) as socket:
        assert await text(socket) == "answered"


async def test_blocked_peer_is_detected_and_can_recover() -> None:
    go_on = anyio.Event()
    sent = 32 * 2**20

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _upgraded(reader, writer)
        await go_on.wait()
        taken = 0
        while taken < sent:
            taken += len(await reader.read(2**20))
        await reader.read()

    async with tcp_server(peer) as url, connected(url) as socket:
        before = time.monotonic()
        for _ in range(32):
            socket.send_binary(bytes(2**20))
        since = socket.blocked_since
        assert since is not None
        assert before <= since <= time.monotonic()
        socket.send_binary(b"more")
        assert socket.blocked_since == since
        go_on.set()
        await until(lambda: socket.blocked_since is None)
        assert socket.open


async def test_blocked_socket_can_be_dropped_at_once() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _upgraded(reader, writer)
        await anyio.sleep_forever()

    async with tcp_server(peer) as url, connected(url) as socket:
        for _ in range(32):
            socket.send_binary(bytes(2**20))
        socket.abort("the service took no audio for 5 s")
        assert await closing(socket) == (1006, "the service took no audio for 5 s")
