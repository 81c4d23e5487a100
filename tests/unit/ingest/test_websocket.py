"""WebSockets of the HTTP port, with the unmodified client of websockets and raw sockets."""

import struct

import anyio
import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.unit.ingest.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FAST,
    PING,
    PONG,
    TEXT,
    UPGRADE,
    close_frame,
    echo,
    frame,
    open_websocket,
    receive_all,
    reset,
    send_forever,
)
from worker.ingest.http import Exchange, Limits, WebSocket, WebSocketClosedError, serve_http

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


class Recorder:
    """A handler that keeps what it receives."""

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []
        self.closed: WebSocketClosedError | None = None
        self.over = anyio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        websocket = await exchange.accept()
        try:
            while True:
                self.messages.append(await websocket.receive())
        except WebSocketClosedError as error:
            self.closed = error
            self.over.set()

    async def end(self) -> tuple[int, bool]:
        await self.over.wait()
        assert self.closed is not None
        return self.closed.code, self.closed.clean


async def test_messages_arrive_whole() -> None:
    async with serve_http("127.0.0.1", 0, echo) as port:
        url, offered = f"ws://127.0.0.1:{port}/raw", [Subprotocol("other"), Subprotocol("media")]
        async with connect(url, subprotocols=offered) as client:
            assert client.subprotocol == "media"
            assert client.response is not None
            assert "Sec-WebSocket-Extensions" not in client.response.headers
            await client.send(["ab", "", "c"])
            assert await client.recv() == "abc"
            for message in (b"\x00\x01", b"", "", "é", b"x" * 200_000):
                await client.send(message)
                assert await client.recv() == message


async def test_consumed_messages_come_before_the_close() -> None:
    taken: list[str | bytes] = []
    closed: list[WebSocketClosedError] = []
    over = anyio.Event()

    def take(message: str | bytes) -> bool:
        taken.append(message)
        return True

    async def handle(exchange: Exchange) -> None:
        websocket = await exchange.accept()
        try:
            await websocket.consume(take)
        except WebSocketClosedError as error:
            closed.append(error)
            over.set()

    async with serve_http("127.0.0.1", 0, handle) as port:
        async with await open_websocket(port) as stream:
            first = frame(TEXT, "é".encode()) + frame(PING, b"1")
            for byte in first:
                await stream.send(bytes([byte]))
            await stream.send(frame(BINARY, b"a") + frame(TEXT, b"", fin=False))
            await stream.send(frame(CONTINUATION, b"b") + frame(BINARY, b"x" * 70_000))
            await stream.send(frame(TEXT, b"c") + frame(CLOSE, struct.pack("!H", 1000)))
            await receive_all(stream)
        await over.wait()
    assert taken == ["é", b"a", "b", b"x" * 70_000, "c"]
    assert (closed[0].code, closed[0].clean) == (1000, True)


async def test_consumer_that_ends_leaves_the_rest() -> None:
    results: list[object] = []
    over = anyio.Event()

    def take_one(_message: str | bytes) -> bool:
        return False

    def refuse(_message: str | bytes) -> bool:
        raise LookupError("refused")

    async def handle(exchange: Exchange) -> None:
        websocket = await exchange.accept()
        await websocket.consume(take_one)
        results.append(await websocket.receive())
        try:
            await websocket.consume(refuse)
        except LookupError as error:
            results.append(str(error))
        results.append(await websocket.receive())
        over.set()
        await websocket.close()

    async with serve_http("127.0.0.1", 0, handle) as port, await open_websocket(port) as stream:
        await stream.send(b"".join(frame(TEXT, name) for name in (b"a", b"b", b"c", b"d")))
        await over.wait()
    assert results == ["b", "refused", "d"]


async def test_subprotocol_that_is_not_offered_is_not_sent() -> None:
    async with (
        serve_http("127.0.0.1", 0, echo) as port,
        connect(f"ws://127.0.0.1:{port}/") as client,
    ):
        assert client.subprotocol is None


async def test_control_frames_between_fragments_are_answered() -> None:
    recorder = Recorder()
    async with serve_http("127.0.0.1", 0, recorder) as port:
        async with await open_websocket(port) as stream:
            await stream.send(frame(TEXT, "é".encode()[:1], fin=False))
            await stream.send(frame(PING, b"1") + frame(CONTINUATION, b"", fin=False))
            await stream.send(frame(PONG, b"x") + frame(CONTINUATION, "é".encode()[1:]))
            await stream.send(frame(CLOSE, struct.pack("!H", 1000)))
            received = await receive_all(stream)
        assert await recorder.end() == (1000, True)
    assert recorder.messages == ["é"]
    assert received == frame(PONG, b"1", masked=False) + close_frame(1000)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(BINARY, b"a", masked=False), 1002),
        (frame(3, b"a"), 1002),
        (frame(CONTINUATION, b"a"), 1002),
        (b"\xf2" + frame(BINARY, b"a")[1:], 1002),
        (frame(PING, b"a", fin=False), 1002),
        (frame(PING, b"a" * 126), 1002),
        (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, struct.pack("!H", 1005)), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, "é".encode()[:1]), 1007),
        (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
        (frame(BINARY, b"x" * 201), 1009),
        (frame(BINARY, b"x" * 120, fin=False) + frame(CONTINUATION, b"x" * 120), 1009),
        (b"\x82\xff" + b"\x7f" + b"\xff" * 7, 1009),
    ],
)
async def test_invalid_frame_closes_with_its_code(sent: bytes, code: int) -> None:
    recorder = Recorder()
    limits = Limits(max_message_bytes=200)
    async with serve_http("127.0.0.1", 0, recorder, limits) as port:
        async with await open_websocket(port) as stream:
            await stream.send(frame(BINARY, b"before") + sent)
            received = await receive_all(stream)
        closed_code, clean = await recorder.end()
    assert recorder.messages == [b"before"]
    assert received[0] == 0x80 | CLOSE
    assert struct.unpack("!H", received[2:4])[0] == code
    assert (closed_code, clean) == (code, False) or code in {1002, 1007}


async def test_frames_in_single_bytes_are_read() -> None:
    recorder = Recorder()
    async with serve_http("127.0.0.1", 0, recorder) as port:
        async with await open_websocket(port) as stream:
            for byte in frame(TEXT, b"slow") + frame(CLOSE):
                await stream.send(bytes([byte]))
                await anyio.wait_all_tasks_blocked()
            assert await receive_all(stream) == frame(CLOSE, masked=False)
        assert await recorder.end() == (1005, True)
    assert recorder.messages == ["slow"]


async def test_frames_behind_the_handshake_wait_for_it() -> None:
    recorder = Recorder()
    release = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        await release.wait()
        await recorder(exchange)

    async with (
        serve_http("127.0.0.1", 0, handle) as port,
        await anyio.connect_tcp("127.0.0.1", port) as stream,
    ):
        await stream.send(UPGRADE)
        await anyio.sleep(0.05)
        await stream.send(frame(TEXT, b"early") + frame(CLOSE))
        release.set()
        assert await recorder.end() == (1005, True)
    assert recorder.messages == ["early"]


async def test_peer_closes_and_gets_its_code_back() -> None:
    recorder = Recorder()
    async with serve_http("127.0.0.1", 0, recorder) as port:
        async with connect(f"ws://127.0.0.1:{port}/") as client:
            await client.send("last")
            await client.close(4000, "bye")
            assert client.close_code == 4000
        assert await recorder.end() == (4000, True)
    assert recorder.messages == ["last"]


@pytest.mark.parametrize(("reason", "expected"), [("bye", "bye"), ("é" * 100, "é" * 61)])
async def test_handler_closes_with_its_code(reason: str, expected: str) -> None:
    async def handle(exchange: Exchange) -> None:
        websocket = await exchange.accept()
        await websocket.close(4001, reason)
        await websocket.close(1000)
        with pytest.raises(WebSocketClosedError):
            await websocket.send("late")
        with pytest.raises(WebSocketClosedError):
            await websocket.receive()

    async with (
        serve_http("127.0.0.1", 0, handle) as port,
        connect(f"ws://127.0.0.1:{port}/") as client,
    ):
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, expected)


@pytest.mark.parametrize("message", [b"", b"x" * 1_000])
async def test_close_reads_the_close_frame_behind_a_full_queue(message: bytes) -> None:
    ends = []
    over = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        websocket = await exchange.accept()
        await anyio.sleep(0.2)  # the messages fill the queue: reading pauses
        await websocket.close(1008)
        with pytest.raises(WebSocketClosedError) as closed:
            await websocket.receive()
        ends.append((closed.value.code, closed.value.clean))
        over.set()

    async with serve_http("127.0.0.1", 0, handle, Limits(queue_bytes=1_000)) as port:
        async with await open_websocket(port) as stream:
            flood = frame(BINARY, message)
            await stream.send(flood * (100_000 // len(flood)))
            await stream.send(frame(CLOSE, struct.pack("!H", 1000)))
            received = await receive_all(stream)
        await over.wait()
    assert received == close_frame(1008)
    assert ends == [(1000, True)]


async def test_flood_of_empty_messages_is_not_read() -> None:
    websockets: list[WebSocket] = []

    async def handle(exchange: Exchange) -> None:
        websockets.append(await exchange.accept())
        await anyio.sleep_forever()

    limits = Limits(queue_bytes=64 * 1_000)
    async with (
        serve_http("127.0.0.1", 0, handle, limits) as port,
        await open_websocket(port) as stream,
    ):
        flood = frame(BINARY) * 10_000
        for _ in range(300):  # more than the buffers of the system take
            with anyio.move_on_after(0.3) as scope:
                await stream.send(flood)
            if scope.cancelled_caught:
                break
        waiting = len(websockets[0]._connection.inbox)
    assert 1_000 < waiting <= 1_000 + 256 * 1024 // len(frame(BINARY))


async def test_peer_without_pongs_is_lost() -> None:
    recorder = Recorder()
    async with (
        serve_http("127.0.0.1", 0, recorder, FAST) as port,
        await open_websocket(port) as stream,
    ):
        assert (await receive_all(stream)) == frame(PING, masked=False)
        assert await recorder.end() == (1006, False)


async def test_peer_with_pongs_stays() -> None:
    async with (
        serve_http("127.0.0.1", 0, echo, FAST) as port,
        connect(f"ws://127.0.0.1:{port}/", ping_interval=None) as client,
    ):
        await anyio.sleep(3 * (FAST.ping_interval_s + FAST.pong_timeout_s))
        await client.send("still here")
        assert await client.recv() == "still here"


async def test_peer_that_waits_for_a_slow_handler_stays() -> None:
    received = []
    over = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        websocket = await exchange.accept()
        await anyio.sleep(3 * (FAST.ping_interval_s + FAST.pong_timeout_s))
        received.append(await websocket.receive())
        with pytest.raises(WebSocketClosedError) as closed:
            await websocket.receive()
        received.append(str(closed.value.code))
        over.set()

    limits = msgspec.structs.replace(FAST, queue_bytes=100)
    async with (
        serve_http("127.0.0.1", 0, handle, limits) as port,
        await open_websocket(port) as stream,
    ):
        await stream.send(frame(BINARY, b"x" * 1_000))
        await anyio.sleep(FAST.ping_interval_s)  # reading is paused by now
        await stream.send(frame(CLOSE, struct.pack("!H", 1000)))
        await over.wait()
    assert received == [b"x" * 1_000, "1000"]


async def test_reset_peer_is_lost() -> None:
    recorder = Recorder()
    async with serve_http("127.0.0.1", 0, recorder) as port:
        await reset(await open_websocket(port))
        assert await recorder.end() == (1006, False)


async def test_peer_that_ends_without_a_close_frame_is_lost() -> None:
    recorder = Recorder()
    async with serve_http("127.0.0.1", 0, recorder) as port:
        async with await open_websocket(port) as stream:
            await stream.send(frame(TEXT, b"last") + frame(TEXT, b"half", fin=False))
            await stream.send_eof()
            assert await receive_all(stream) == b""
        assert await recorder.end() == (1006, False)
    assert recorder.messages == ["last"]


async def test_peer_that_resets_before_the_answer_is_lost() -> None:
    recorder = Recorder()
    entered, release = anyio.Event(), anyio.Event()

    async def handle(exchange: Exchange) -> None:
        entered.set()
        await release.wait()
        await recorder(exchange)

    async with serve_http("127.0.0.1", 0, handle) as port:
        stream = await anyio.connect_tcp("127.0.0.1", port)
        await stream.send(UPGRADE)
        await entered.wait()
        await reset(stream)
        release.set()
        assert await recorder.end() == (1006, False)


async def test_peer_that_does_not_read_is_dropped() -> None:
    ends = []
    over = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        websocket = await exchange.accept()
        try:
            while True:
                await websocket.send(b"x" * 65_536)
        except WebSocketClosedError as error:
            ends.append((error.code, error.clean))
            over.set()

    async with serve_http("127.0.0.1", 0, handle, FAST) as port, await open_websocket(port):
        await over.wait()
    assert ends == [(1006, False)]


async def test_peer_that_floods_pings_and_does_not_read_is_dropped() -> None:
    recorder = Recorder()
    limits = Limits(unread_bytes=100_000, write_timeout_s=600)
    async with serve_http("127.0.0.1", 0, recorder, limits) as port:
        async with await open_websocket(port) as stream:
            pings = frame(PING, b"x" * 125) * 1_000
            with anyio.fail_after(30), pytest.raises(anyio.BrokenResourceError):
                await send_forever(stream, pings)
        assert await recorder.end() == (1006, False)


async def test_peer_that_does_not_answer_a_close_is_dropped() -> None:
    over = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        websocket = await exchange.accept()
        await websocket.close(1008)
        over.set()

    async with (
        serve_http("127.0.0.1", 0, handle, FAST) as port,
        await open_websocket(port) as stream,
    ):
        await over.wait()
        assert await receive_all(stream) == close_frame(1008)


async def test_stop_closes_with_1001() -> None:
    async with serve_http("127.0.0.1", 0, echo) as port:
        client = await connect(f"ws://127.0.0.1:{port}/")
        silent = await open_websocket(port)
    await client.wait_closed()
    assert client.close_code == 1001
    assert await receive_all(silent) == close_frame(1001)
    await silent.aclose()


async def test_cancelled_handler_closes_with_1001() -> None:
    cancelled = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        websocket = await exchange.accept()
        try:
            await websocket.receive()
        except anyio.get_cancelled_exc_class():
            cancelled.set()
            raise

    async with anyio.create_task_group() as tasks:
        opened = anyio.Event()
        ports = []

        async def serve() -> None:
            async with serve_http("127.0.0.1", 0, handle) as port:
                ports.append(port)
                opened.set()
                await anyio.sleep_forever()

        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await serve()

        tasks.start_soon(run)
        await opened.wait()
        async with connect(f"ws://127.0.0.1:{ports[0]}/") as client:
            scope.cancel()
            await client.wait_closed()
            assert client.close_code == 1001
    assert cancelled.is_set()


async def test_handler_that_returns_closes_with_1000() -> None:
    async def handle(exchange: Exchange) -> None:
        await exchange.accept()

    async with (
        serve_http("127.0.0.1", 0, handle) as port,
        connect(f"ws://127.0.0.1:{port}/") as client,
    ):
        await client.wait_closed()
        assert client.close_code == 1000


async def test_handler_error_closes_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(exchange: Exchange) -> None:
        await exchange.accept()
        raise RuntimeError("bug")

    async with (
        serve_http("127.0.0.1", 0, handle) as port,
        connect(f"ws://127.0.0.1:{port}/?token=secret") as client,
    ):
        await client.wait_closed()
        assert client.close_code == 1011
    assert "internal error in the handler" in caplog.text
    assert "secret" not in caplog.text


async def test_closed_peer_in_a_task_group_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    over = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        websocket = await exchange.accept()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                await websocket.receive()
        finally:
            over.set()

    async with serve_http("127.0.0.1", 0, handle) as port:
        async with connect(f"ws://127.0.0.1:{port}/"):
            pass
        await over.wait()
        await anyio.wait_all_tasks_blocked()
    assert caplog.text == ""
