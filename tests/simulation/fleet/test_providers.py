"""The engine of a fleet's provider: its events leave as late as the plan says, and in order."""

import random

import anyio

from tests.simulation.fleet.providers import FleetEngine
from tests.simulation.provider_model import Delays
from tests.simulation.speech import AUDIO
from tests.support import virtual_time
from worker.local.emulator.engines.base import EngineEvent, TurnSettings
from worker.local.emulator.engines.script import ScriptOptions, ScriptStream, synthesize_words
from worker.local.emulator.engines.script_words import WORD_MS

LAG_S = 0.2


def test_events_are_late_singly_and_flush_waits_for_them() -> None:
    events: list[tuple[float, EngineEvent]] = []

    async def program() -> None:
        stream, began = _open(events), anyio.current_time()
        for number in range(20):
            await stream.feed(synthesize_words([number], AUDIO))
            await anyio.sleep(WORD_MS / 1_000)
        await stream.flush()
        events[:] = [(at - began, event) for at, event in events]
        await stream.aclose()

    virtual_time.run(program())
    kinds = [event.kind for _, event in events]
    assert kinds == ["turn.start", *["turn.update"] * 20, "turn.end"]
    updates = [at - number * WORD_MS / 1_000 for number, (at, _) in enumerate(events[1:-1])]
    assert all(late_s >= LAG_S for late_s in updates)
    assert 0 < sum(late_s > LAG_S + 0.01 for late_s in updates) < len(updates)


def test_closed_stream_drops_its_late_events() -> None:
    events: list[tuple[float, EngineEvent]] = []

    async def program() -> None:
        stream = _open(events)
        await stream.feed(synthesize_words([1], AUDIO))
        await stream.aclose()
        await anyio.sleep(60)

    virtual_time.run(program())
    assert not events


def _open(events: list[tuple[float, EngineEvent]]) -> ScriptStream:
    def emit(event: EngineEvent) -> None:
        events.append((anyio.current_time(), event))

    delays = Delays(LAG_S, late_share=0.1, late_s=0.5)
    engine = FleetEngine(ScriptOptions(), delays, 0.0, random.Random(1))
    return engine.open(AUDIO, TurnSettings(), (), emit)
