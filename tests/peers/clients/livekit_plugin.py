"""Sessions through LiveKit's plugin."""

import asyncio
from collections.abc import Callable

import aiohttp  # type: ignore[import-not-found]
from livekit import rtc  # type: ignore[import-not-found]
from livekit.agents import stt as agents_stt  # type: ignore[import-not-found]
from livekit.plugins import cartesia  # type: ignore[import-not-found]
from peer import Make, Spec, drive  # type: ignore[import-not-found]

FINAL = agents_stt.SpeechEventType.FINAL_TRANSCRIPT


class Call:
    """One session."""

    def __init__(
        self, stream: agents_stt.RecognizeStream, spec: Spec, on_text: Callable[[str], None]
    ) -> None:
        self._stream = stream
        self._rate = spec.sample_rate
        self._on_text = on_text
        self._reading = asyncio.create_task(self._read())

    async def send(self, chunk: bytes) -> None:
        """Send a chunk."""
        self._stream.push_frame(rtc.AudioFrame(chunk, self._rate, 1, len(chunk) // 2))

    async def finish(self) -> None:
        """End the audio; return when the last words were received."""
        self._stream.end_input()
        await self._reading
        await self._stream.aclose()

    async def _read(self) -> None:
        async for event in self._stream:
            if event.type == FINAL:
                self._on_text(event.alternatives[0].text)


def prepare(spec: Spec) -> Make:
    """Return a function that opens a session; all share a client and its pool of connections."""
    http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    client = cartesia.STT(
        api_key="sk_car_local",
        base_url=spec.base_url,
        http_session=http,
        sample_rate=spec.sample_rate,
        audio_chunk_duration_ms=spec.chunk_ms,  # it cuts audio anew: the same messages for all
    )

    async def make(on_text: Callable[[str], None]) -> Call:
        return Call(client.stream(), spec, on_text)

    return make


drive(prepare)
