"""The memory of an ended session is freed at once, without a garbage collection."""

import gc
import weakref
from collections.abc import Iterator

import anyio
import pytest

from tests.support.harness import PCM16, Harness
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Disable the garbage collector, so that only reference counts free memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
async def test_ended_session_is_freed_without_collection(harness: Harness) -> None:
    names = [f"call-{number}" for number in range(3)]
    async with harness.worker(replay_speed=0.0) as worker:
        for name in names:
            await harness.announce(name)
            await harness.play(
                name,
                synthesize_words([1], PCM16) + synthesize_silence(500, PCM16),
                pause_s=0,
                end=False,
            )
        with anyio.fail_after(30):
            while sum(session.phase.value == "live" for session in worker.running) < len(names):
                await anyio.sleep(0.01)
        parts = [
            weakref.ref(part)
            for session in worker.running
            for part in (session, session._sender, session._ingest, session._connection)
        ]
        assert all(part() is not None for part in parts)
        for name in names:
            await harness.append(name, end="1")
        await harness.until_ended(*names)
        # Local references to the last session last until there is another one.
        await harness.announce("another")
        with anyio.fail_after(30):
            while any(part() is not None for part in parts):
                await anyio.sleep(0.01)
        await harness.append("another", end="1")
        await harness.until_ended("another")
