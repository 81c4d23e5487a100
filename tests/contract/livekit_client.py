"""Plays stdin to a turns server through LiveKit's plugin; prints what it gets as JSON lines.

The plugin's own Python runs it: `livekit_client.py BASE_URL SAMPLE_RATE`, with pcm_s16le.
"""

import asyncio
import json
import sys

import aiohttp  # type: ignore[import-not-found]
from livekit import rtc  # type: ignore[import-not-found]
from livekit.plugins import cartesia  # type: ignore[import-not-found]


async def main(base_url: str, sample_rate: str) -> None:
    rate = int(sample_rate)
    audio = sys.stdin.buffer.read()
    async with aiohttp.ClientSession() as http:
        stt = cartesia.STT(
            api_key="sk_car_test",
            base_url=base_url,
            http_session=http,
            sample_rate=rate,
            keyterm=["Ink 2"],
        )
        async with stt.stream() as stream:
            stream.push_frame(rtc.AudioFrame(audio, rate, 1, len(audio) // 2))
            open_input = True
            async for event in stream:
                if open_input:  # it connects only while more audio is to come
                    open_input = False
                    stream.end_input()
                text = event.alternatives[0].text if event.alternatives else None
                print(json.dumps([event.type.value, text]), flush=True)


asyncio.run(main(*sys.argv[1:]))
