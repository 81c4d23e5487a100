"""Plays stdin to a Flux server through LiveKit's plugin; prints what it gets as JSON lines.

The plugin's own Python runs it: `flux_livekit_client.py URL SAMPLE_RATE`, with linear16.
"""

import asyncio
import json
import sys

import aiohttp  # type: ignore[import-not-found]
from livekit import rtc  # type: ignore[import-not-found]
from livekit.plugins import deepgram  # type: ignore[import-not-found]


async def main(url: str, sample_rate: str) -> None:
    rate = int(sample_rate)
    audio = sys.stdin.buffer.read()
    async with aiohttp.ClientSession() as http:
        stt = deepgram.STTv2(
            api_key="dg_test",
            base_url=url,
            http_session=http,
            sample_rate=rate,
            eager_eot_threshold=0.4,
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
