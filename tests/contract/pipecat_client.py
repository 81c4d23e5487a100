"""Plays stdin to a turns server through Pipecat's service; prints what it gets as JSON lines.

The service's own Python runs it: `pipecat_client.py URL SAMPLE_RATE`, with pcm_s16le.
"""

import asyncio
import json
import sys

from pipecat.frames.frames import (  # type: ignore[import-not-found]
    InputAudioRawFrame,
    STTMetadataFrame,
)
from pipecat.services.cartesia.turns.stt import (  # type: ignore[import-not-found]
    CartesiaTurnsSTTService,
)
from pipecat.tests.utils import run_test  # type: ignore[import-not-found]


async def main(url: str, sample_rate: str) -> None:
    rate = int(sample_rate)
    audio = sys.stdin.buffer.read()
    service = CartesiaTurnsSTTService(
        api_key="sk_car_test",
        url=url,
        sample_rate=rate,
        enable_eager_end_of_turn=True,
        settings=CartesiaTurnsSTTService.Settings(keyterm=["Ink 2"], turn_end_timeout_ms=5600),
    )
    chunk = rate // 5 * 2
    frames = [
        InputAudioRawFrame(audio[start : start + chunk], rate, 1)
        for start in range(0, len(audio), chunk)
    ]
    down, _ = await run_test(service, frames_to_send=frames, start_timeout=30)
    for frame in down:
        if not isinstance(frame, InputAudioRawFrame | STTMetadataFrame):
            print(json.dumps([type(frame).__name__, getattr(frame, "text", None)]), flush=True)


asyncio.run(main(*sys.argv[1:]))
