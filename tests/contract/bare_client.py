"""Sessions through `websockets` alone, driven like the published clients."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

from websockets.asyncio.client import ClientConnection, connect

import tests.peers.clients

sys.path.insert(0, str(Path(next(iter(tests.peers.clients.__path__)))))

from peer import Make, Spec, drive  # type: ignore[import-not-found]


class Call:
    def __init__(self, ws: ClientConnection, on_transcript: Callable[[str], None]) -> None:
        self._ws = ws
        self._on_transcript = on_transcript
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def open(cls, spec: Spec, on_transcript: Callable[[str], None]) -> Self:
        query = f"model=ink-2&encoding=pcm_s16le&sample_rate={spec.sample_rate}"
        headers = {"X-API-Key": "local", "Cartesia-Version": "2026-03-01"}
        ws = await connect(f"{spec.url}?{query}", additional_headers=headers, proxy=None)
        return cls(ws, on_transcript)

    async def send(self, chunk: bytes) -> None:
        await self._ws.send(chunk)

    async def finish(self) -> None:
        await self._ws.send('{"type":"close"}')
        await self._listening

    async def _listen(self) -> None:
        async for message in self._ws:
            event = json.loads(message)
            if event["type"] == "turn.end" and "w3" not in event["transcript"].split():
                self._on_transcript(event["transcript"])


def prepare(spec: Spec) -> Make:
    async def make(on_transcript: Callable[[str], None]) -> Call:
        return await Call.open(spec, on_transcript)

    return make


drive(prepare)
