"""Frames that a burst holds: written at its end, and in order on each socket."""

import asyncio

import pytest
from websockets.frames import Frame
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from worker.stt.frames import LenientProtocol
from worker.stt.websocket import WebSocketClient
from worker.write_burst import MAX_HELD_FRAMES, WriteBurst

Log = list[tuple[str, bytes]]


class Transport(asyncio.Transport):
    """Logs what the peer of a socket receives."""

    def __init__(self, name: str, log: Log) -> None:
        super().__init__()
        self.socket: WebSocketClient | None = None
        self.full = self.failing = self.aborted = False
        self._name = name
        self._log = log
        self._peer = ServerProtocol(state=State.OPEN, max_size=None)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.failing:
            raise ZeroDivisionError("a fault put in by the test")
        self._peer.receive_data(bytes(data))
        for frame in self._peer.events_received():
            assert isinstance(frame, Frame)
            self._log.append((self._name, bytes(frame.data)))
        if self.full and self.socket is not None:
            self.socket.pause_writing()

    def abort(self) -> None:
        self.aborted = True


def _connect(name: str, burst: WriteBurst, log: Log) -> tuple[WebSocketClient, Transport]:
    protocol = LenientProtocol(parse_uri("ws://127.0.0.1/"), state=State.OPEN, max_size=None)
    socket, transport = WebSocketClient(protocol, {}, burst), Transport(name, log)
    socket._transport, transport.socket = transport, socket
    return socket, transport


def test_frames_are_written_at_end_of_burst() -> None:
    burst, log = WriteBurst(), Log()
    (a, _), (b, _) = _connect("a", burst, log), _connect("b", burst, log)
    a.send_binary(b"1")
    with burst:
        a.send_binary(b"2")
        b.send_binary(b"3")
        a.send_binary(b"4")
        assert log == [("a", b"1")]
    assert log == [("a", b"1"), ("a", b"2"), ("b", b"3"), ("a", b"4")]
    a.send_binary(b"5")
    assert log[4:] == [("a", b"5")]


def test_burst_holds_a_limited_number_of_frames() -> None:
    burst, log = WriteBurst(), Log()
    socket, _ = _connect("a", burst, log)
    with burst:
        for number in range(MAX_HELD_FRAMES + 3):
            socket.send_binary(b"%d" % number)
        assert len(log) == MAX_HELD_FRAMES
    assert log == [("a", b"%d" % number) for number in range(MAX_HELD_FRAMES + 3)]


def test_other_frames_are_written_after_held_ones() -> None:
    burst, log = WriteBurst(), Log()
    a, _ = _connect("a", burst, log)
    with burst:
        a.send_binary(b"1")
        a.send_text("config")
        a.send_binary(b"2")
        a.send_ping(7)
        a.send_binary(b"3")
        a.data_received(b"\x89\x04ping")
        a.send_binary(b"4")
        a.send_text("close")
        assert log[-1] == ("a", b"close")
    assert [data for _, data in log] == [
        b"1", b"config", b"2", b"7", b"3", b"ping", b"4", b"close"
    ]  # fmt: skip


def test_error_in_burst_does_not_drop_frames() -> None:
    burst, log = WriteBurst(), Log()
    a, _ = _connect("a", burst, log)

    def fail() -> None:
        with burst:
            a.send_binary(b"1")
            raise ZeroDivisionError("a fault put in by the test")

    with pytest.raises(ZeroDivisionError):
        fail()
    assert log == [("a", b"1")]
    assert burst.held is None


def test_failed_write_drops_only_its_socket(caplog: pytest.LogCaptureFixture) -> None:
    burst, log = WriteBurst(), Log()
    (a, failing), (b, other) = _connect("a", burst, log), _connect("b", burst, log)
    failing.failing = True
    with burst:
        a.send_binary(b"1")
        b.send_binary(b"2")
    assert log == [("b", b"2")]
    assert (failing.aborted, other.aborted) == (True, False)
    assert "dropping the connection" in caplog.text


def test_lost_socket_receives_no_held_frame() -> None:
    burst, log = WriteBurst(), Log()
    a, _ = _connect("a", burst, log)
    with burst:
        a.send_binary(b"1")
        a.connection_lost(None)
    assert log == []


def test_blocked_socket_is_noticed_at_end_of_burst() -> None:
    burst, log = WriteBurst(), Log()
    a, transport = _connect("a", burst, log)
    transport.full = True
    with burst:
        a.send_binary(b"1")
        assert a.blocked_since is None
    assert a.blocked_since is not None
