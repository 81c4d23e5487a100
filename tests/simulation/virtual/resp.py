"""A tiny RESP server, to run redis-py on the simulated network."""

import asyncio
from collections.abc import Callable


class RespServer:
    """Knows SET, GET, INCRBY and PING; its data outlives a connection. Call it for a protocol."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}

    def __call__(self) -> asyncio.Protocol:
        return _Connection(self.execute)

    async def serve(self) -> None:
        """Listen on port 6379."""
        server = await asyncio.get_running_loop().create_server(self, None, 6379)
        await server.serve_forever()

    def execute(self, *arguments: bytes) -> bytes:
        """Run a command; return its reply."""
        match arguments:
            case (b"SET", key, value):
                self.data[key] = value
                return b"+OK\r\n"
            case (b"GET", key):
                if key not in self.data:
                    return b"$-1\r\n"
                return b"$%d\r\n%s\r\n" % (len(self.data[key]), self.data[key])
            case (b"INCRBY", key, number):
                self.data[key] = b"%d" % (int(self.data.get(key, b"0")) + int(number))
                return b":%s\r\n" % self.data[key]
            case (b"PING",):
                return b"+PONG\r\n"
            case _:
                return b"+OK\r\n"


class _Connection(asyncio.Protocol):
    def __init__(self, execute: Callable[..., bytes]) -> None:
        self._execute = execute
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._received += data
        while (command := self._next_command()) is not None:
            self._transport.write(self._execute(*command))

    def _next_command(self) -> list[bytes] | None:
        head, complete, rest = self._received.partition(b"\r\n")
        if not complete:
            return None
        arguments = []
        for _ in range(int(head.removeprefix(b"*"))):
            size, complete, rest = rest.partition(b"\r\n")
            length = int(size.removeprefix(b"$")) if complete else 0
            if not complete or len(rest) < length + 2:
                return None
            arguments.append(rest[:length])
            rest = rest[length + 2 :]
        self._received = rest
        return arguments
