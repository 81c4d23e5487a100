"""A TCP proxy that injects faults: cuts at any byte, stalls, refusals, and lost replies."""

import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Self

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.stapled import MultiListener

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER value that makes the close of a socket a reset."""

_READ: Final = 65_536


class Link:
    """One client's connection through the proxy."""

    def __init__(self, client: SocketStream, server: SocketStream) -> None:
        self._client = client
        self._server = server
        # Read now: a stream that the peer closed has no socket.
        self._sockets = (_raw(client), _raw(server))
        self._scope = anyio.CancelScope()
        self._flowing = anyio.Event()
        self._flowing.set()
        self._left: int | None = None
        self._reply_dropped = False
        self.opening = b""
        """First bytes from the client: an HTTP request identifies the connection."""

    def cut(self) -> None:
        """Reset both sides now."""
        self._scope.cancel()

    def cut_after(self, size: int) -> None:
        """Reset both sides after `size` more bytes to the client."""
        self._left = size

    def stall(self) -> None:
        """Stop forwarding in both directions, without closing."""
        if self._flowing.is_set():
            self._flowing = anyio.Event()

    def flow(self) -> None:
        """Resume forwarding, including the delayed data."""
        self._flowing.set()

    async def run(self, drops_reply: Callable[[bytes], bool]) -> None:
        """Forward bytes until either side ends; drop a reply if `drops_reply` of its request."""
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._forward_requests, drops_reply)
                tasks.start_soon(self._forward_replies)
        for raw in self._sockets:
            _reset(raw)

    async def _forward_requests(self, drops_reply: Callable[[bytes], bool]) -> None:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                data = await self._client.receive(_READ)
                self.opening = self.opening or data
                await self._flowing.wait()
                self._reply_dropped = self._reply_dropped or drops_reply(data)
                await self._server.send(data)
        self._scope.cancel()

    async def _forward_replies(self) -> None:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                data = await self._server.receive(_READ)
                await self._flowing.wait()
                if self._reply_dropped:
                    break
                if self._left is not None:
                    data, self._left = data[: self._left], self._left - len(data)
                await self._client.send(data)
                if self._left is not None and self._left <= 0:
                    break
        self._scope.cancel()


class DroppedReply:
    """Drops the reply to the next request that contains `mark`, once, on one of several proxies.

    The server executes the request, and the proxy cuts the connection instead of the reply.
    """

    def __init__(self, mark: bytes) -> None:
        self.mark: Final = mark
        self.done: Final = anyio.Event()


class Proxy:
    """Listens on its own port and forwards to a server on this machine."""

    def __init__(self, target: Callable[[], int]) -> None:
        self._target = target
        self._answer: bytes | None = None
        self._refusing = self._stalling = False
        self._open = anyio.Event()
        self._open.set()
        self._listening = anyio.CancelScope()
        self.port = 0
        self.links: Final[set[Link]] = set()
        """Open connections."""
        self.dropped_replies: Final[set[DroppedReply]] = set()
        """Replies to drop."""

    @classmethod
    @asynccontextmanager
    async def open(cls, target: Callable[[], int]) -> AsyncIterator[Self]:
        """Listen until the block ends; `target` returns the server's port for each connection."""
        proxy = cls(target)
        # A bound socket that does not listen keeps the port while the proxy is closed.
        with socket.socket() as reservation:
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reservation.bind(("127.0.0.1", 0))
            proxy.port = reservation.getsockname()[1]
            listener = await proxy._listener()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(proxy._accept, listener)
                try:
                    yield proxy
                finally:
                    tasks.cancel_scope.cancel()

    def url(self, target: str) -> str:
        """Return the URL `target` of the server with the port of the proxy."""
        return target.replace(str(self._target()), str(self.port))

    def some(self, rng: random.Random, share: float) -> list[Link]:
        """Choose a share of the open connections, at least one if there is any."""
        links = sorted(self.links, key=id)
        return rng.sample(links, max(1, round(len(links) * share))) if links else []

    def cut_all(self) -> None:
        """Reset every connection."""
        for link in self.links:
            link.cut()

    @contextmanager
    def refusing(self, answer: bytes | None = None) -> Iterator[None]:
        """Answer every new connection with `answer`, or with a reset if it is None."""
        self._refusing, self._answer = True, answer
        try:
            yield
        finally:
            self._refusing = False

    @contextmanager
    def stalling(self) -> Iterator[None]:
        """Accept new connections and forward nothing; the open ones stall, too."""
        self._stalling = True
        for link in self.links:
            link.stall()
        try:
            yield
        finally:
            self._stalling = False

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Do not listen: the kernel refuses new connections."""
        self._open = anyio.Event()
        self._listening.cancel()
        try:
            yield
        finally:
            self._open.set()

    async def _listener(self) -> MultiListener[SocketStream]:
        return await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.port)

    async def _accept(self, listener: MultiListener[SocketStream]) -> None:
        """Accept connections until cancelled, except while the proxy is closed."""
        async with anyio.create_task_group() as serving:
            while True:
                async with listener:
                    with anyio.CancelScope() as self._listening:
                        await listener.serve(self._serve, serving)
                await self._open.wait()
                listener = await self._listener()

    def _drops_reply(self, request: bytes) -> bool:
        for drop in self.dropped_replies:
            if drop.mark in request and not drop.done.is_set():
                drop.done.set()
                return True
        return False

    async def _serve(self, client: SocketStream) -> None:
        async with client:
            if self._refusing:
                await self._refuse(client)
                return
            try:
                server = await anyio.connect_tcp("127.0.0.1", self._target())
            except OSError:
                _reset(_raw(client))
                return
            link = Link(client, server)
            if self._stalling:
                link.stall()
            self.links.add(link)
            try:
                async with server:
                    await link.run(self._drops_reply)
            finally:
                self.links.discard(link)

    async def _refuse(self, client: SocketStream) -> None:
        if self._answer is None:
            _reset(_raw(client))
            return
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            await client.receive()
            await client.send(self._answer)


def _raw(stream: SocketStream) -> socket.socket | None:
    """Return the socket; None if the peer has already closed it."""
    try:
        raw: socket.socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610
    except AttributeError:  # a closed asyncio transport has no socket
        return None
    return raw


def _reset(raw: socket.socket | None) -> None:
    """Make the close of a socket a reset; do nothing if it is already closed."""
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
