"""Sessions through the official SDK."""

import asyncio
from collections.abc import Callable
from typing import Self

from cartesia import AsyncCartesia  # type: ignore[import-not-found]
from cartesia.resources.stt.auto_finalize import (  # type: ignore[import-not-found]
    AsyncAutoFinalizeResourceConnectionManager,
)
from peer import Make, Spec, drive  # type: ignore[import-not-found]


class Call:
    """One session."""

    def __init__(
        self, stream: AsyncAutoFinalizeResourceConnectionManager, on_text: Callable[[str], None]
    ) -> None:
        self._stream = stream
        self._on_text = on_text

    async def open(self) -> Self:
        """Connect."""
        self._connection = await self._stream.__aenter__()
        self._reading = asyncio.create_task(self._read())
        return self

    async def send(self, chunk: bytes) -> None:
        """Send a chunk."""
        await self._connection.send_raw(chunk)

    async def finish(self) -> None:
        """End the audio; return when the last words were received."""
        await self._connection.send({"type": "close"})
        await self._reading
        await self._stream.__aexit__(None, None, None)

    async def _read(self) -> None:
        async for event in self._connection:
            if event.type == "turn.end":
                self._on_text(event.transcript)


def prepare(spec: Spec) -> Make:
    """Return a function that opens a session; all share a client, as is usual."""
    client = AsyncCartesia(api_key="sk_car_local", base_url=spec.base_url)

    async def make(on_text: Callable[[str], None]) -> Call:
        stream = client.stt.auto_finalize.websocket(
            model="ink-2", encoding="pcm_s16le", sample_rate=spec.sample_rate
        )
        return await Call(stream, on_text).open()

    return make


drive(prepare)
