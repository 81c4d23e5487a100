"""Minimal Redis connection for a producer of thousands of chunks a second.

A client library takes many times as long for each command, and would use CPU that the worker needs.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import anyio
from anyio.abc import ByteStream
from hiredis import Reader, pack_command

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

    async def execute(self, commands: Sequence[tuple[bytes, ...]]) -> list[Any]:
        """Send commands in one write, and return their replies.

        An error reply is returned as an exception object. Raises anyio's EndOfStream or
        BrokenResourceError if the connection is lost.
        """
        # hiredis declares the command as a tuple of one part.
        packed = map(pack_command, commands)  # type: ignore[arg-type]
        await self._stream.send(b"".join(packed))
        replies: list[Any] = []
        while len(replies) < len(commands):
            self._reader.feed(await self._stream.receive(_AT_MOST))
            while (reply := self._reader.gets()) is not Ellipsis:
                replies.append(reply)
        return replies
