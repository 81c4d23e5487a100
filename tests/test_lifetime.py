"""An ended session goes at once: its memory waits for no garbage collection."""

import gc
import weakref
from collections.abc import Iterator

import anyio
import pytest

from tests.stage import PCM16, Stage
from worker.local.engines.script import hush, say


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Let nothing be freed but by its last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
async def test_an_ended_session_leaves_nothing(stage: Stage) -> None:
    names = [f"call-{number}" for number in range(3)]
    async with stage.worker(replay_speed=0.0) as worker:
        for name in names:
            await stage.announce(name)
            await stage.play(name, say([1], PCM16) + hush(500, PCM16), pause_s=0, end=False)
        with anyio.fail_after(30):
            while sum(session.phase.value == "live" for session in worker.roster) < len(names):
                await anyio.sleep(0.01)
        parts = [
            weakref.ref(part)
            for session in worker.roster
            for part in (session, session._uplink, session._narrator, session._conversation)
        ]
        assert all(part() is not None for part in parts)
        for name in names:
            await stage.append(name, end="1")
        await stage.until_ended(*names)
        # Whoever looked at the last of them has another to look at.
        await stage.announce("another")
        with anyio.fail_after(30):
            while any(part() is not None for part in parts):
                await anyio.sleep(0.01)
        await stage.append("another", end="1")
        await stage.until_ended("another")
