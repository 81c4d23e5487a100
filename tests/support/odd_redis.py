"""A proxy in front of a Redis server that changes replies or the server's identity."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import ByteStream, SocketAttribute

from worker.local.redis import EmbeddedRedis

GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class Front:
    """Created by `open`."""

    def __init__(self, behind: EmbeddedRedis) -> None:
        self._behind = behind
        self.port = 0
        self.greeting: bytes | None = None
        """Reply to a new connection before it is closed. None forwards the server's reply."""
        self.answer: bytes | None = None
        """Reply to every command. None forwards the server's reply."""
        self.info: Mapping[str, str | None] = {}
        """INFO fields to replace, or to remove."""

    @classmethod
    @asynccontextmanager
    async def open(cls, behind: EmbeddedRedis) -> AsyncIterator["Front"]:
        """Listen in front of a server until the context ends."""
        front = cls(behind)
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        front.port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, front._serve)
            try:
                yield front
            finally:
                tasks.cancel_scope.cancel()

    async def _serve(self, client: ByteStream) -> None:
        with suppress(*GONE):
            async with client:
                if self.greeting is not None:
                    await client.send(self.greeting)
                elif self.answer is not None:
                    async for _ in client:
                        await client.send(self.answer)
                else:
                    await self._pass_on(client)

    async def _pass_on(self, client: ByteStream) -> None:
        async with (
            await anyio.connect_tcp("127.0.0.1", self._behind.port) as server,
            anyio.create_task_group() as tasks,
        ):

            async def reply() -> None:
                with suppress(*GONE):
                    async for data in server:
                        await client.send(self._edited(data))
                tasks.cancel_scope.cancel()

            tasks.start_soon(reply)
            with suppress(*GONE):
                async for data in client:
                    await server.send(data)
            tasks.cancel_scope.cancel()

    def _edited(self, data: bytes) -> bytes:
        """Edit a reply to INFO, which always arrives alone and in one piece."""
        if not self.info or b"# Server\r\n" not in data:
            return data
        text = data.partition(b"\r\n")[2].removesuffix(b"\r\n").decode()
        for name, value in self.info.items():
            line = "" if value is None else f"{name}:{value}\r\n"
            text = re.sub(rf"(?m)^{name}:.*\r\n", "", text)
            text = text.replace("# Server\r\n", f"# Server\r\n{line}", 1)
        body = text.encode()
        return b"$%d\r\n%s\r\n" % (len(body), body)
