"""One TCP connection of the HTTP port: bytes, the parser, and every timeout. No routes.

The connection is an asyncio protocol: a call sends fifty messages a second, and a stream that is
paused after each read costs two more system calls a message. Reading never waits for the handler
unless `Limits.queue_bytes` of messages wait for it. A connection without a request has no task.

`Limits` are checked by `Connection.check`, which the server calls for all connections; so ten
thousand idle sockets have no timer each.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, cast

import anyio
from websockets.exceptions import HeaderLineTooLong, RequestLineTooLong, TooManyHeaders
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request as ParsedRequest
from websockets.protocol import Event, State

from worker.ingest.frames import FastServerProtocol, split_messages
from worker.ingest.limits import Limits
from worker.ingest.messages import Inbox
from worker.ingest.responses import TEXT, plain_response, whole_response

# At debug level the library logs request lines and headers, which contain tokens.
_library_log: Final = logging.getLogger(__name__)
_library_log.setLevel(logging.WARNING)

_HEAD_END: Final = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection. Its server's callbacks are called when it opens, has a request, is lost."""

    def __init__(
        self,
        limits: Limits,
        opened: Callable[["Connection"], None],
        requested: Callable[["Connection", ParsedRequest], None],
        lost: Callable[["Connection"], None],
    ) -> None:
        self._limits = limits
        self._on_opened = opened
        self._on_request = requested
        self._on_lost = lost
        self.protocol = FastServerProtocol(
            max_size=limits.max_message_bytes, extensions=None, logger=_library_log
        )
        self.inbox = Inbox()
        """Whole messages that the handler has not taken."""
        self.consumer: Callable[[], None] | None = None
        """Takes the waiting messages when some arrive, in place of the tasks in `changed`."""
        self.is_lost = False
        """Whether the TCP connection is gone."""
        self.peer = ""
        """Address of the other side."""
        self._request_seen = False
        self._request_bytes = 0
        self._request_tail = b""
        self._reading = True
        self._waiters: list[asyncio.Future[None]] = []
        self._writable: anyio.Event | None = None
        self._active = True
        self._written_bytes = 0
        self._sent_bytes = 0
        self._waited_s: dict[str, float] = {}

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport and report the connection."""
        self._transport = cast("asyncio.Transport", transport)
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if name else ""
        self._on_opened(self)

    def data_received(self, data: bytes) -> None:
        """Parse what the peer sent."""
        self._active = True
        if self.protocol.state is State.CONNECTING:
            if not self._request_seen:
                self._receive_request(data)
            return  # a peer that was answered sends nothing of interest
        if self.protocol.between_messages:
            messages, end = split_messages(data, self._limits.max_message_bytes)
            for message in messages:
                self.inbox.put(message)
            data = data[end:]
        if data:
            self.protocol.receive_data(data)
            self._queue_messages()
            self.flush()
        self._hand_over()
        if self._transport.get_write_buffer_size() > self._limits.unread_bytes:
            self.abort()  # it sends pings and does not read the pongs

    def eof_received(self) -> None:
        """Handle the end of what the peer sends: the transport closes after what it has to send.

        A connection whose request has no answer yet is not read, and does not come here.
        """
        if self.protocol.state is not State.CONNECTING:
            self.protocol.receive_eof()
            self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake every waiter: nothing more is sent or received."""
        self.is_lost = True
        if self.protocol.state is not State.CONNECTING:
            self.protocol.receive_eof()
            self.protocol.data_to_send()
        self._wake()
        self.resume_writing()
        self._on_lost(self)

    def pause_writing(self) -> None:
        """Make `drained` wait."""
        self._writable = anyio.Event()

    def resume_writing(self) -> None:
        """End the wait of `drained`."""
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    # Answers and messages.

    def respond(self, response: bytes) -> None:
        """Send a complete HTTP response and close; the peer has a moment to read it."""
        self.write(response)
        self.finish()

    def write(self, data: bytes) -> None:
        """Send bytes, unless the connection is closing."""
        if not self._transport.is_closing():
            self._written_bytes += len(data)
            self._transport.write(data)

    def finish(self) -> None:
        """End what this side sends; the connection is lost when the peer closes, or soon."""
        if not self._transport.is_closing():
            self._resume_reading()
            self._waited_s.setdefault("close", 0.0)
            self._write_eof()

    def begin_stream(self) -> None:
        """Watch for the peer's end while a response is sent: no more is wanted then."""
        self._resume_reading()

    def upgraded(self) -> None:
        """Read messages from here on: the handshake is accepted."""
        self._resume_reading()
        self.flush()

    def flush(self) -> None:
        """Send what the protocol has to send."""
        for data in self.protocol.data_to_send():
            if data:
                self.write(data)
            elif not self._transport.is_closing():
                self._write_eof()
        if self.protocol.close_expected():
            self._waited_s.setdefault("close", 0.0)

    async def drained(self) -> None:
        """Wait until the peer has read enough, or the connection is lost."""
        while self._writable is not None:
            await self._writable.wait()

    async def changed(self) -> None:
        """Wait for a message, a close frame, or the end of the connection."""
        # One is needed for each message: an event costs more.
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    async def closed(self) -> None:
        """Wait for the end of the connection."""
        while not self.is_lost:
            await self.changed()

    def take(self) -> str | bytes:
        """Return the first waiting message."""
        message = self.inbox.take()
        self._resume_if_emptied()
        return message

    def discard_messages(self) -> None:
        """Drop the waiting messages: the peer's close frame may be behind them."""
        self.inbox.clear()
        self._resume_if_emptied()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    def check(self, passed_s: float) -> None:
        """Act on the timeouts; `passed_s` is the time since the check before."""
        if self.is_lost:
            return
        limits = self._limits
        unsent_bytes, sent_before = self._transport.get_write_buffer_size(), self._sent_bytes
        self._sent_bytes = self._written_bytes - unsent_bytes
        is_stuck = unsent_bytes > 0 and self._sent_bytes == sent_before
        write_s = self._waits("write", passed_s, is_true=is_stuck)
        close_s = 0.0
        if "close" in self._waited_s and not unsent_bytes:
            close_s = self._waits("close", passed_s)
        if write_s > limits.write_timeout_s or close_s > limits.close_timeout_s:
            self.abort()
        elif not self._request_seen:
            if self._waits("request", passed_s) > limits.request_timeout_s:
                self._refuse(408, "no complete request arrived in time")
        elif self.protocol.state is State.OPEN:
            self._check_pings(passed_s)

    def _check_pings(self, passed_s: float) -> None:
        is_silent = not self._active and self._reading
        self._active = False
        silent_s = self._waits("data", passed_s, is_true=is_silent)
        if "pong" in self._waited_s:
            if self._waits("pong", passed_s, is_true=is_silent) > self._limits.pong_timeout_s:
                self.abort()
        elif silent_s > self._limits.ping_interval_s:
            self._waited_s["pong"] = 0.0
            self.protocol.send_ping(b"")
            self.flush()

    def _waits(self, what: str, passed_s: float, *, is_true: bool = True) -> float:
        """Return how long something has been waited for; 0 if it is not."""
        if not is_true:
            self._waited_s.pop(what, None)
            return 0.0
        self._waited_s[what] = waited_s = self._waited_s.get(what, 0.0) + passed_s
        return waited_s

    def _receive_request(self, data: bytes) -> None:
        self._request_bytes += len(data)
        self._request_tail = (self._request_tail + data)[-len(_HEAD_END) :]
        self.protocol.receive_data(data)
        problem = self.protocol.handshake_exc
        events = self.protocol.events_received()
        is_too_long = self._request_bytes > self._limits.max_request_bytes
        if isinstance(problem, RequestLineTooLong):
            self._refuse(414, "the request line is too long")
        elif isinstance(problem, (HeaderLineTooLong, TooManyHeaders)) or is_too_long:
            self._refuse(431, "there are too many headers, or one is too long")
        elif problem is not None:
            self._refuse(400, "this is not a GET request of HTTP/1.1 without a body")
        elif events:
            self._check_request(events)

    def _check_request(self, events: Sequence[Event]) -> None:
        request = events[0]
        if not isinstance(request, ParsedRequest) or not self._ends_with_request(events):
            self._refuse(400, "data was sent before the answer to the request")
        elif request.method == "HEAD":
            self._request_seen = True
            self.respond(whole_response(405, b"", TEXT, [("Allow", "GET")]))
        elif request.method != "GET":
            self._refuse(405, "only GET is served", ("Allow", "GET"))
        else:
            self._request_seen = True
            self._reading = False
            self._transport.pause_reading()
            self._on_request(self, request)

    def _ends_with_request(self, events: Sequence[Event]) -> bool:
        """Return whether nothing came behind the request, also if the parser took it already."""
        is_all_read = not self.protocol.reader.buffer and self.protocol.parser_exc is None
        return is_all_read and len(events) == 1 and self._request_tail == _HEAD_END

    def _refuse(self, status: int, line: str, *headers: tuple[str, str]) -> None:
        self._request_seen = True
        self.respond(plain_response(status, line, headers))

    def _queue_messages(self) -> None:
        """Queue the whole messages among the frames that arrived."""
        try:
            for frame in self.protocol.events_received():
                if isinstance(frame, Frame):
                    self.inbox.add(frame)
        except UnicodeDecodeError:
            if self.protocol.state is State.OPEN:
                self.protocol.fail(CloseCode.INVALID_DATA, "text that is not UTF-8")

    def _hand_over(self) -> None:
        """Have the waiting messages taken; pause reading if they are too many."""
        if self.consumer is not None:
            self.consumer()
        if self.inbox.waiting_bytes > self._limits.queue_bytes and self._reading:
            self._reading = False
            self._transport.pause_reading()
        if self.consumer is None or self.protocol.state is not State.OPEN:
            self._wake()

    def _resume_if_emptied(self) -> None:
        if self.inbox.waiting_bytes <= self._limits.queue_bytes // 2:
            self._resume_reading()

    def _write_eof(self) -> None:
        try:
            self._transport.write_eof()
        except OSError:  # the peer reset the connection, which was not read since
            self.abort()

    def _resume_reading(self) -> None:
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():  # not cancelled
                waiter.set_result(None)
