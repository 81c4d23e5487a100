"""Plays stdin to a Flux server through Pipecat's service; prints what it gets as JSON lines.

The service's own Python runs it: `flux_pipecat_client.py URL SAMPLE_RATE`, with linear16. The
service drops what arrives after its last frame, so that it waits for the end of the last turn.
"""

import asyncio
import json
import sys
from typing import Any

from pipecat.frames.frames import (  # type: ignore[import-not-found]
    Frame,
    InputAudioRawFrame,
    STTMetadataFrame,
)
from pipecat.services.deepgram.flux.stt import (  # type: ignore[import-not-found]
    DeepgramFluxSTTService,
)
from pipecat.tests.utils import SleepFrame, run_test  # type: ignore[import-not-found]


async def main(url: str, sample_rate: str) -> None:
    rate = int(sample_rate)
    audio = sys.stdin.buffer.read()
    service: Any = DeepgramFluxSTTService(
        api_key="dg_test",
        url=url,
        sample_rate=rate,
        enable_eager_end_of_turn=True,
        settings=DeepgramFluxSTTService.Settings(keyterm=["Ink 2"], eager_eot_threshold=0.4),
    )
    chunk = rate // 5 * 2
    frames: list[Frame] = [
        InputAudioRawFrame(audio[start : start + chunk], rate, 1)
        for start in range(0, len(audio), chunk)
    ]
    frames.append(SleepFrame(sleep=2))
    down, _ = await run_test(service, frames_to_send=frames, start_timeout=30)
    for frame in down:
        if not isinstance(frame, InputAudioRawFrame | STTMetadataFrame):
            print(json.dumps([type(frame).__name__, getattr(frame, "text", None)]), flush=True)


asyncio.run(main(*sys.argv[1:]))
