"""One call without Redis: when its task wakes."""

from collections.abc import Sequence

import anyio
import pytest

from schemas import AudioEntry, Encoding, SessionEntry
from tests.support.polling import eventually
from worker.ingest.appender import SessionAppender
from worker.ingest.call import Call, CallLimits
from worker.ingest.counters import IngestCounters
from worker.ingest.records import Audio, Ended, Started

pytestmark = pytest.mark.anyio

ENTRY = SessionEntry(session="s", encoding=Encoding.PCM_MULAW, sample_rate=8_000)


class Appender(SessionAppender):
    """Keeps the entries, in place of Redis."""

    def __init__(self) -> None:
        self.entries: list[AudioEntry] = []

    async def append(self, entries: Sequence[AudioEntry]) -> None:
        self.entries += entries


@pytest.mark.parametrize("pause_s", [0.0, 0.05, 0.3])
async def test_audio_after_a_pause_is_flushed(pause_s: float) -> None:
    appender = Appender()
    call = Call(Started((ENTRY,)), "raw", "src", [appender], CallLimits(), IngestCounters())
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call.run)
            for at in range(1, 4):
                await anyio.sleep(pause_s)
                call.feed(Audio(bytes(160)))
                await eventually(lambda: len(appender.entries) == at, "the partial chunk")  # noqa: B023
            call.feed(Ended())
    assert [len(entry.audio) for entry in appender.entries] == [160, 160, 160, 0]


async def test_quiet_call_sets_no_timer() -> None:
    call = Call(Started((ENTRY,)), "raw", "src", [Appender()], CallLimits(), IngestCounters())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run)
        call.feed(Audio(bytes(160)))
        await eventually(lambda: call._wakes_at == float("inf"), "the end of the timers")
        tasks.cancel_scope.cancel()
