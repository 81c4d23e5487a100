"""The local STT server as a provider that fails on request."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

import anyio

from worker.errors import TurnbusError
from worker.urls import check_http_url


class Provider:
    """Breaks an STT server through its control endpoint (`worker.local.emulator.control`)."""

    def __init__(self, control_url: str) -> None:
        self._address: Final = check_http_url(control_url)

    async def cut(self) -> None:
        """Reset every open socket."""
        await self._get("/cut")

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Reset every socket and refuse new ones until the block ends."""
        await self._get("/outage/start")
        try:
            await self.cut()
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self._get("/outage/stop")

    async def _get(self, target: str) -> None:
        host, port = self._address
        request = f"GET {target} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"
        answer = b""
        try:
            async with await anyio.connect_tcp(host, port) as stream:
                await stream.send(request.encode())
                async for part in stream:
                    answer += part
        except (OSError, anyio.BrokenResourceError) as error:
            raise TurnbusError("the STT server does not answer") from error
        if not answer.startswith(b"HTTP/1.1 %d " % HTTPStatus.OK):
            raise TurnbusError("the STT server refused to fail: is it being broken already?")
