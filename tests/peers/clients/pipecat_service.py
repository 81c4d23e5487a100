"""Sessions through Pipecat's service, each in a pipeline of its own."""

import asyncio
import sys
from collections.abc import Callable
from typing import Self

from loguru import logger  # type: ignore[import-not-found]
from peer import Make, Spec, drive  # type: ignore[import-not-found]
from pipecat.frames.frames import EndFrame, InputAudioRawFrame  # type: ignore[import-not-found]
from pipecat.pipeline.pipeline import Pipeline  # type: ignore[import-not-found]
from pipecat.pipeline.worker import PipelineParams, PipelineWorker  # type: ignore[import-not-found]
from pipecat.services.cartesia.turns.stt import (  # type: ignore[import-not-found]
    CartesiaTurnsSTTService,
)
from pipecat.workers.runner import WorkerRunner  # type: ignore[import-not-found]


class Call:
    """One session."""

    def __init__(self, spec: Spec, on_text: Callable[[str], None]) -> None:
        self._rate = spec.sample_rate
        service = CartesiaTurnsSTTService(
            api_key="sk_car_local", url=spec.url, sample_rate=spec.sample_rate
        )

        @service.event_handler("on_turn_end")  # type: ignore[untyped-decorator]
        async def _on_turn_end(_: CartesiaTurnsSTTService, transcript: str) -> None:
            on_text(transcript)

        self._started = asyncio.Event()
        # Without observers of turns or of idleness, and without the protocol of a client.
        self._worker = PipelineWorker(
            Pipeline([service]),
            cancel_on_idle_timeout=False,
            enable_rtvi=False,
            enable_turn_tracking=False,
            check_dangling_tasks=False,
            params=PipelineParams(audio_in_sample_rate=spec.sample_rate),
        )

        @self._worker.event_handler("on_pipeline_started")  # type: ignore[untyped-decorator]
        async def _on_started(*_: object) -> None:
            self._started.set()

    async def open(self) -> Self:
        """Start the pipeline, which connects."""
        runner = WorkerRunner(handle_sigint=False, check_dangling_tasks=False)
        await runner.add_workers(self._worker)
        self._running = asyncio.create_task(runner.run())
        await asyncio.wait_for(self._started.wait(), 30)
        return self

    async def send(self, chunk: bytes) -> None:
        """Send a chunk."""
        await self._worker.queue_frame(InputAudioRawFrame(chunk, self._rate, 1))

    async def finish(self) -> None:
        """End the audio; return when the last words were received."""
        await self._worker.queue_frame(EndFrame())
        await self._running


def prepare(spec: Spec) -> Make:
    """Return a function that opens a session."""
    logger.remove()
    logger.add(sys.stderr, level="WARNING")

    async def make(on_text: Callable[[str], None]) -> Call:
        return await Call(spec, on_text).open()

    return make


drive(prepare)
