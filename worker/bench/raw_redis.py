"""Minimal Redis connection for a producer of thousands of chunks a second.

It sends pre-encoded commands. A client library takes ten times as long for each, and would use CPU
that the worker needs.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import anyio
from anyio.abc import ByteStream
from hiredis import Reader

_AT_MOST: Final = 64 * 1024


class RawConnection:
    """One connection; `connect` creates one."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._reader = Reader(notEnoughData=Ellipsis)

    @classmethod
    @asynccontextmanager
    async def connect(cls, host: str, port: int) -> AsyncIterator[Self]:
        """Connect until the block ends. Raises OSError if that fails."""
        async with await anyio.connect_tcp(host, port) as stream:
            yield cls(stream)

    async def ask(self, pieces: Sequence[bytes], count: int) -> list[Any]:
        """Send `pieces`, which contain `count` commands, and return the replies.

        An error reply is returned as an exception object. Raises anyio's EndOfStream or
        BrokenResourceError if the connection is lost.
        """
        await self._stream.send(b"".join(pieces))
        replies: list[Any] = []
        while len(replies) < count:
            self._reader.feed(await self._stream.receive(_AT_MOST))
            while (reply := self._reader.gets()) is not Ellipsis:
                replies.append(reply)
        return replies


def array_of(count: int) -> bytes:
    """Encode the head of a command of `count` parts; their `bulks` follow."""
    return b"*%d\r\n" % count


def bulks(*parts: bytes) -> bytes:
    """Encode parts of a command."""
    return b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
