"""A client that shows the bytes of each reply."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class Client:
    """A connection that sends commands and receives the bytes of replies."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["Client"]:
        """Connect to the port of a URL on this machine until the context ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._writer.write(data)

    def send(self, text: str) -> None:
        """Send a command."""
        words = text.split()
        parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
        self.write(f"*{len(words)}\r\n{''.join(parts)}".encode())

    async def receive(self) -> bytes:
        """Return the bytes of the next reply."""
        line = await self._reader.readuntil(b"\n")
        count = int(line[1:]) if line[:1] in b"$*" else -1
        if line[:1] == b"$" and count >= 0:
            return line + await self._reader.readexactly(count + 2)
        if line[:1] == b"*":
            return line + b"".join([await self.receive() for _ in range(count)])
        return line
