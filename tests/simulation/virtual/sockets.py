"""Simulated TCP sockets: what a program gets instead of `socket.socket`.

They are non-blocking. A call that would block raises `BlockingIOError`, and the loop's
`add_reader` and `add_writer` wait for them, as for real ones.
"""

import asyncio
import errno
import socket
import struct
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from tests.simulation.virtual.pipes import Mark, Pipe, error_of

if TYPE_CHECKING:
    from tests.simulation.virtual.hosts import Process
    from tests.simulation.virtual.network import Network

Address = tuple[str, int]

NO_ADDRESS: Address = ("0.0.0.0", 0)


class VirtualSocket:
    """A TCP socket of a process. `World.run` puts a subclass in place of `socket.socket`."""

    network: ClassVar["Network"]

    def __init__(
        self,
        family: int = -1,
        type: int = -1,  # noqa: A002 - as in `socket.socket`
        proto: int = -1,
        fileno: int | None = None,
    ) -> None:
        if fileno is not None:
            raise error_of(errno.EBADF)
        if family not in {-1, socket.AF_INET}:
            raise error_of(errno.EAFNOSUPPORT)
        if type not in {-1, socket.SOCK_STREAM}:
            raise error_of(errno.EPROTONOSUPPORT)
        self._prepare(self.network.current_process())
        self._descriptor = self.process.open_descriptor(self)

    @classmethod
    def accepted_by(cls, listener: "VirtualSocket", client: "VirtualSocket") -> "VirtualSocket":
        """Return the server's end of a new connection. It gets a descriptor in `accept`."""
        made = object.__new__(cls)
        made._prepare(listener.process)
        made.address = made.process.host.address, listener.address[1]
        made.peer_address = client.address
        return made

    def _prepare(self, process: "Process") -> None:
        self.family = socket.AF_INET
        self.type = socket.SOCK_STREAM
        self.proto = socket.IPPROTO_TCP
        self.process = process
        self._hash = self.network.loop.draw_hash()
        self.address: Address = NO_ADDRESS
        self.peer_address: Address | None = None
        self.incoming: Pipe | None = None
        self.outgoing: Pipe | None = None
        self.connecting = False
        self.listening = False
        self.backlog = 0
        self.accepted: deque[VirtualSocket] = deque()
        """Connections that the program has not accepted yet, of a listening socket."""
        self.closed = False
        self.silent = False
        """Whether the host lost its power: it answers nothing, not even with a reset."""
        self._ended = False  # the peer sends no more
        self._shut = False  # this side sends no more
        self._reset_sent = False
        self._reset_on_close = False
        self._error: OSError | None = None
        self._reader: asyncio.Handle | None = None
        self._writer: asyncio.Handle | None = None
        self._read_queued = False
        self._write_queued = False
        self._options: dict[tuple[int, int], int] = {}
        self._descriptor = -1

    # -- for programs

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<VirtualSocket fd={self._descriptor} {self.address} to {self.peer_address}>"

    def __hash__(self) -> int:
        return self._hash

    def fileno(self) -> int:
        """Return the descriptor; -1 of a closed socket."""
        return self._descriptor

    def setblocking(self, flag: bool) -> None:
        """Accept only non-blocking mode."""
        if flag:
            raise NotImplementedError("a simulated socket cannot block")

    def settimeout(self, value: float | None) -> None:
        """Accept only non-blocking mode."""
        self.setblocking(value != 0)

    def gettimeout(self) -> float:
        """Return 0: the socket does not block."""
        return 0.0

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """Set an option. A linger time of 0 has an effect: `close` resets the connection."""
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER) and isinstance(value, bytes):
            self._reset_on_close = struct.unpack("ii", value) == (1, 0)
        elif isinstance(value, int):
            self._options[level, option] = value

    def getsockopt(self, level: int, option: int) -> int:
        """Return an option, or the error of a failed connect."""
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR):
            self._write_queued = False
            return 0 if self._error is None else self._error.errno or 0
        return self._options.get((level, option), 0)

    def getsockname(self) -> Address:
        """Return the local address."""
        self._check_open()
        return self.address

    def getpeername(self) -> Address:
        """Return the peer's address."""
        self._check_open()
        if self.peer_address is None or self.connecting:
            raise error_of(errno.ENOTCONN)
        return self.peer_address

    def bind(self, address: Address) -> None:
        """Take a local address; port 0 for any."""
        self._check_open()
        self.address = self.network.bind(self, address)

    def listen(self, backlog: int = 128) -> None:
        """Accept connections to the local address."""
        self._check_open()
        self.network.listen(self)
        self.listening = True
        self.backlog = backlog

    def accept(self) -> tuple["VirtualSocket", Address]:
        """Return a connection and its peer's address."""
        self._check_open()
        self._read_queued = False
        if not self.accepted:
            raise BlockingIOError(errno.EAGAIN, "no connection waits")
        connection = self.accepted.popleft()
        connection._descriptor = self.process.open_descriptor(connection)
        self.poll_read()
        assert connection.peer_address is not None
        return connection, connection.peer_address

    def connect(self, address: Address) -> None:
        """Begin to connect. The socket becomes writable when that has ended."""
        self._check_open()
        if self.outgoing is not None:
            raise error_of(errno.EISCONN)
        if self.connecting:
            raise error_of(errno.EALREADY)
        self.connecting = True
        self.peer_address = address
        self.network.connect(self, address)
        raise BlockingIOError(errno.EINPROGRESS, "connecting")

    def recv(self, most: int) -> bytes:
        """Return bytes that arrived; none at the end of the stream."""
        self._check_open()
        self._read_queued = False
        incoming = self.incoming
        if incoming is None:
            raise self._error or error_of(errno.ENOTCONN)
        if incoming.received:
            data = incoming.take(most)
            if self._readable():
                self.poll_read()
            return data
        if self._error is not None:
            raise self._error
        if self._ended:
            return b""
        raise BlockingIOError(errno.EAGAIN, "nothing arrived")

    def recv_into(self, buffer: memoryview) -> int:
        """Put bytes that arrived into a buffer."""
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send as many of the bytes as the kernel takes."""
        self._check_open()
        self._write_queued = False
        if self._error is not None:
            raise self._error
        outgoing = self.outgoing
        if outgoing is None:
            raise error_of(errno.ENOTCONN)
        if self._shut:
            raise error_of(errno.EPIPE)
        room = outgoing.room
        if room <= 0:
            raise BlockingIOError(errno.EAGAIN, "the buffers are full")
        taken = bytes(data) if len(data) <= room else bytes(data[:room])
        outgoing.send(taken)
        if self._writer is not None:
            self.poll_write()
        return len(taken)

    def sendmsg(self, buffers: Iterable[bytes | bytearray | memoryview]) -> int:
        """Send as many bytes of several buffers as the kernel takes; for Python 3.12 and later."""
        return self.send(b"".join(buffers))

    def shutdown(self, how: int) -> None:
        """End one side of the stream."""
        self._check_open()
        if self._error is not None or self.outgoing is None:
            raise error_of(errno.ENOTCONN)
        if how in {socket.SHUT_WR, socket.SHUT_RDWR} and not self._shut:
            self._shut = True
            self.outgoing.mark(Mark.END)
        if how in {socket.SHUT_RD, socket.SHUT_RDWR}:
            self._ended = True

    def close(self) -> None:
        """Close the socket, as Linux does: unread data makes it a reset."""
        if self.closed:
            return
        self.release()
        if self.listening:
            self.network.stop_listening(self)
            for connection in self.accepted:
                connection.abandon()
        elif self.incoming is not None and self._error is None:
            if self._reset_on_close or self.incoming.received:
                self.answer_with_reset()
            elif not self._shut and self.outgoing is not None:
                self.outgoing.mark(Mark.END)
        self.network.closed(self)

    def detach(self) -> int:
        """Refuse: a simulated descriptor is nothing without its socket."""
        raise NotImplementedError("a simulated socket has no descriptor of its own")

    def release(self) -> None:
        """Give the descriptor back; no callback of the socket runs again."""
        self.closed = True
        self.set_reader(None)
        self.set_writer(None)
        if self._descriptor >= 0:
            self.process.close_descriptor(self._descriptor)
            self._descriptor = -1

    def _check_open(self) -> None:
        if self.closed:
            raise error_of(errno.EBADF)

    # -- for the network

    @property
    def gone(self) -> bool:
        """Whether this end knows of no connection (any more)."""
        return self.closed or self._error is not None

    def established(self, incoming: Pipe, outgoing: Pipe) -> None:
        """Become one end of a connection."""
        self.connecting = False
        self.incoming = incoming
        self.outgoing = outgoing
        self.poll_write()
        self.poll_read()

    def data_arrived(self) -> None:
        """Wake the reader."""
        if self._reader is not None and not self._read_queued:
            self._queue_reader()

    def end_arrived(self) -> None:
        """Record the end of the peer's stream."""
        self._ended = True
        self.poll_read()

    def fail(self, error: OSError) -> None:
        """End the connection, or the attempt to connect, with an error."""
        if self.closed or self._error is not None:
            return
        self.connecting = False
        self._error = error
        if self.outgoing is not None:
            self.outgoing.discard()
        self.poll_read()
        self.poll_write()

    def queue_accepted(self, connection: "VirtualSocket") -> None:
        """Take a connection that the program may accept."""
        if connection.closed:
            return
        if self.closed:
            connection.abandon()
        else:
            self.accepted.append(connection)
            self.poll_read()

    def answer_with_reset(self) -> None:
        """Reset the peer's end, once."""
        if self.outgoing is not None and not self._reset_sent:
            self._reset_sent = True
            self.outgoing.mark(Mark.RESET)

    def abandon(self) -> None:
        """Close a connection that no program has accepted."""
        self.closed = True
        self.answer_with_reset()
        self.network.closed(self)

    # -- for the loop

    def set_reader(self, handle: asyncio.Handle | None) -> bool:
        """Set what to call while the socket is readable; return whether something was set."""
        before, self._reader = self._reader, handle
        self._read_queued = False
        if before is not None:
            before.cancel()
        if handle is not None:
            self.poll_read()
        return before is not None

    def set_writer(self, handle: asyncio.Handle | None) -> bool:
        """Set what to call while the socket is writable; return whether something was set."""
        before, self._writer = self._writer, handle
        self._write_queued = False
        if before is not None:
            before.cancel()
        if handle is not None:
            self.poll_write()
        return before is not None

    def _readable(self) -> bool:
        if self.listening:
            return bool(self.accepted)
        pipe = self.incoming
        return self._ended or self._error is not None or (pipe is not None and bool(pipe.received))

    def poll_read(self) -> None:
        """Queue the reader if the socket is readable."""
        if self._reader is not None and not self._read_queued and self._readable():
            self._queue_reader()

    def _queue_reader(self) -> None:
        assert self._reader is not None
        self._read_queued = True
        process = self.process
        process.ready.append(self._reader)
        if not process.scheduled:
            self.network.loop.wake(process)

    def poll_write(self) -> None:
        """Queue the writer if the socket is writable."""
        if self._writer is None or self._write_queued or self.connecting:
            return
        if self._error is None and self.outgoing is not None and self.outgoing.room <= 0:
            return
        self._write_queued = True
        process = self.process
        process.ready.append(self._writer)
        if not process.scheduled:
            self.network.loop.wake(process)
