"""A WebSocket client: the `websockets` protocol, driven directly by an asyncio transport.

A worker has thousands of sockets, and each carries ten or more chunks a second. So sending is a
plain call (no task switch, no lock), each message is passed to the session by a plain call, and
nothing is compressed. The caller schedules pings: a pong shows how much audio the provider has
received.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import NoReturn, cast

import anyio
from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from worker.descriptors import session_socket
from worker.network import connect_tcp, open_transport
from worker.stt.frames import (
    DISCARDED,
    MAX_MESSAGE_BYTES,
    FrameWriter,
    LenientProtocol,
    split_texts,
)
from worker.stt.proxy import Proxy

CONNECT_TIMEOUT_S = 8.0
"""Timeout for the name lookup and the TCP connect; the caller's timeout also covers TLS and the
upgrade."""

_CLOSE_GRACE_S = 2.0

_audio = FrameWriter()

DataHandler = Callable[[bytes, str, float, int], None]
"""Handles one message: its UTF-8 text, its defect (empty if it has none), the monotonic time at
which it arrived, and the number of messages that arrived with it and follow.

In a message with a defect, bytes that are not UTF-8 are replaced. A message above
`MAX_MESSAGE_BYTES` is empty.
"""


class SocketClosed(Exception):  # noqa: N818 - internal to worker.stt
    """The socket is closed; `code` is 1006 without a close frame.

    `broken` is whether the provider violated the WebSocket protocol; `reason` then describes how.
    """

    def __init__(self, code: int, reason: str, *, broken: bool = False) -> None:
        super().__init__(f"{code} {reason}".rstrip())
        self.code = code
        self.reason = reason
        self.broken = broken


class WebSocketClient(asyncio.Protocol):
    """One open WebSocket; made by `open_socket`."""

    def __init__(self, protocol: LenientProtocol, headers: Mapping[str, str]) -> None:
        self._protocol = protocol
        self._headers = headers
        self._transport: asyncio.Transport | None = None
        # Messages that are not handled yet: text, defect and arrival time of each.
        self._messages: list[tuple[bytes, str, float]] = []
        self._handle: DataHandler | None = None
        self._failure: Exception | None = None  # raised by the handler
        self._partial: list[bytes] = []
        self._partial_bytes = 0
        self._partial_defect = ""
        self._waiter: asyncio.Future[None] | None = None
        self._lost = False
        self._pings = 0
        self._abort_reason = ""
        self._response: Response | None = None
        self.open = False
        """Whether data can be sent."""
        self._between_messages = False  # the next byte begins a frame that no fragment precedes
        self._note_state()
        self.last_received_at = time.monotonic()
        """Monotonic time at which the last bytes of the peer arrived."""
        self.pongs_received = 0
        """Number of pings answered so far."""
        self.blocked_since: float | None = None
        """Monotonic time since which writing is paused; None if it is not."""

    # -- driven by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake."""
        # uvloop's transport has the methods but is not an instance.
        self._transport = cast("asyncio.Transport", transport)
        request = self._protocol.connect()
        request.headers.update(self._headers)
        self._protocol.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Process bytes from the peer."""
        self.last_received_at = time.monotonic()
        if self._between_messages:
            texts: list[bytes] = []
            end = split_texts(data, texts)
            for text in texts:
                self._take_text(text, "")
            if end == len(data):
                self._deliver()
                return
            data = data[end:]
        self._protocol.receive_data(data)
        self._after_receiving()

    def eof_received(self) -> bool:
        """Process the peer's end of stream."""
        self._protocol.receive_eof()
        self._after_receiving()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the loss of the transport."""
        if not self._lost:
            self._lost = True
            self._protocol.receive_eof()
            self._take_events()
            self._note_state()
            self._deliver()

    def pause_writing(self) -> None:
        """Record that the peer reads too slowly."""
        self.blocked_since = time.monotonic()

    def resume_writing(self) -> None:
        """Record that the peer keeps up again."""
        self.blocked_since = None

    # -- for the session

    def send_binary(self, data: bytes) -> None:
        """Send audio now; it is dropped if the socket is closed (`listen` then raises)."""
        if self.open and self._transport is not None:
            self._transport.write(_audio.binary(data))

    def send_text(self, text: str) -> None:
        """Send a command now."""
        if self.open:
            self._protocol.send_text(text.encode())
            self._flush()

    def send_ping(self, number: int) -> None:
        """Send ping `number`, from 1; `pongs_received` reaches it when the pong arrives."""
        if self.open:
            self._pings = number
            self._protocol.send_ping(str(number).encode())
            self._flush()

    async def receive(self) -> tuple[bytes, str]:
        """Return the text and the defect of the next message, before `listen` is called.

        Raises `SocketClosed` once there are no more.
        """
        while not self._messages:
            if self._ended:
                raise self._closed()
            await self._wait()
        data, defect, _ = self._messages.pop(0)
        return data, defect

    async def listen(self, handle: DataHandler) -> NoReturn:
        """Pass each message to `handle` as it arrives, those that wait already first.

        Raises `SocketClosed` once there are no more, or what `handle` raised. No message is passed
        after that, nor after a cancellation; the messages that follow wait.
        """
        self._handle = handle
        try:
            self._deliver()
            while self._failure is None and not self._ended:
                await self._wait()
        finally:
            self._handle = None
            failure, self._failure = self._failure, None
            if failure is not None:  # also if the task was cancelled before it could raise it
                raise failure
        raise self._closed()

    def abort(self, reason: str) -> None:
        """Drop the connection without a closing handshake."""
        self._abort_reason = self._abort_reason or reason
        if self._transport is not None:
            self._transport.abort()

    async def aclose(self) -> None:
        """Close with a closing handshake, or drop the connection after a timeout."""
        if self.open:
            self._protocol.send_close(1000)
            self._flush()
            self._note_state()
        try:
            with anyio.move_on_after(_CLOSE_GRACE_S):
                while not self._lost:
                    await self._wait()
        finally:
            if not self._lost:
                self.abort("closing")

    async def handshake(self) -> None:
        """Wait until the upgrade succeeds.

        Raises `InvalidStatus` with the provider's response, or `OSError` without one.
        """
        while self._response is None and not self._lost:
            await self._wait()
        error = self._protocol.handshake_exc
        response, self._response = self._response, None
        if response is not None and response.status_code != 101:
            raise InvalidStatus(response)
        if response is None or isinstance(error, InvalidHandshake):
            what = error if error and not isinstance(error, InvalidMessage) else "no HTTP answer"
            raise ConnectionResetError(f"the upgrade failed: {what}")

    # -- internals

    @property
    def _ended(self) -> bool:
        """Whether no more data can arrive."""
        return self._lost or self._protocol.state is State.CLOSED

    async def _wait(self) -> None:
        """Wait for data or the end of the connection; only one task at a time may wait."""
        # Not an `anyio.Event`: creating one costs as much as the rest of receiving.
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _after_receiving(self) -> None:
        self._take_events()
        self._flush()
        if self._protocol.close_expected() and self._transport is not None:
            self._transport.close()
        self._note_state()
        self._deliver()

    def _note_state(self) -> None:
        """Note what every chunk and every message needs of the protocol's state.

        Called after anything that can change it. With many sockets the protocol's objects are not
        in the caches: to ask it for each chunk takes 0.4 us.
        """
        self.open = self._protocol.state is State.OPEN and not self._lost
        self._between_messages = self._protocol.between_messages

    def _deliver(self) -> None:
        """Pass the messages to the handler, or wake the task that waits for one or for the end.

        An exception of the handler belongs to the session, not to the transport that calls this.
        """
        messages = self._messages
        while messages and self._handle is not None:
            data, defect, received_at = messages.pop(0)
            try:
                self._handle(data, defect, received_at, len(messages))
            except Exception as error:  # noqa: BLE001 - `listen` raises it
                self._handle, self._failure = None, error
        if self._handle is None or self._ended:
            self._wake()

    def _take_events(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._response = event
            elif isinstance(event, Frame):
                self._take_frame(event)

    def _take_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            data = bytes(frame.data)
            if data.isdigit() and self.pongs_received < int(data) <= self._pings:
                self.pongs_received = int(data)
        elif frame.opcode in (Opcode.TEXT, Opcode.CONT, Opcode.BINARY):
            self._take_data(frame)

    def _take_data(self, frame: Frame) -> None:
        if frame.opcode is Opcode.BINARY:
            self._partial_defect = "binary message"  # the provider sends only text
        self._partial_bytes += len(frame.data)
        if frame.data is DISCARDED or self._partial_bytes > MAX_MESSAGE_BYTES:
            self._partial_defect = f"larger than {MAX_MESSAGE_BYTES} bytes"
            self._partial_bytes = MAX_MESSAGE_BYTES + 1  # also discards the following fragments
            self._partial.clear()
        else:
            self._partial.append(bytes(frame.data))
        if not frame.fin:
            return
        self._take_text(b"".join(self._partial), self._partial_defect)
        self._partial.clear()
        self._partial_bytes, self._partial_defect = 0, ""

    def _take_text(self, data: bytes, defect: str) -> None:
        if not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError:
                data = data.decode("utf-8", "replace").encode()
                defect = defect or "invalid UTF-8"
        self._messages.append((data, defect, self.last_received_at))

    def _flush(self) -> None:
        if self._transport is None:
            return
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()

    def _closed(self) -> SocketClosed:
        if self._abort_reason:
            return SocketClosed(1006, self._abort_reason)
        error = self._protocol.parser_exc
        if isinstance(error, ProtocolError):
            return SocketClosed(1006, f"protocol error: {error}", broken=True)
        return SocketClosed(
            self._protocol.close_code or 1006, self._protocol.close_reason or "connection lost"
        )


@cache
def _tls() -> ssl.SSLContext:
    """Return the client context of the process: creating one reads every trusted root."""
    return ssl.create_default_context()


async def open_socket(
    url: str, headers: Mapping[str, str], proxy: Proxy | None = None
) -> WebSocketClient:
    """Connect, upgrade, and return the open socket.

    Raises `OSError` (no connection, TLS), `InvalidStatus`, or `SttError` if the proxy refuses. The
    caller sets the timeout; on cancellation nothing stays open.
    """
    uri = parse_uri(url)
    socket = WebSocketClient(LenientProtocol(uri, max_size=None), headers)
    try:
        if proxy is None:
            connected = await connect_tcp(uri.host, uri.port, CONNECT_TIMEOUT_S, session_socket)
            context = _tls() if uri.secure else None
            await open_transport(lambda: socket, connected, context, uri.host)
        else:
            await proxy.open_transport(socket, uri, _tls, CONNECT_TIMEOUT_S)
        await socket.handshake()
    except BaseException:
        socket.abort("handshake aborted")
        raise
    return socket
