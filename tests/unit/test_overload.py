"""A worker with a lagging event loop leaves new sessions to other workers."""

import time
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from schemas.keys import GROUP
from tests.support.harness import PCM16, Harness, words
from tests.support.polling import eventually, no_longer
from worker.event_loop import LATE_WAKEUP_S, OVERLOAD_WAKEUPS, OverloadDetector
from worker.local.emulator.engines.script import synthesize_words

LATE = LATE_WAKEUP_S + 0.05
IN_TIME = LATE_WAKEUP_S
ENTRIES: list[dict[Any, Any]] = [
    {"session": f"call-{number}", "encoding": PCM16.encoding, "sample_rate": PCM16.sample_rate}
    for number in range(1, 21)
]


@pytest.mark.parametrize(
    ("delays", "overloaded"),
    [
        ([], False),
        ([0.0] * 20, False),
        ([IN_TIME] * 20, False),
        ([60.0], False),  # stopped for a minute
        ([LATE] * (OVERLOAD_WAKEUPS - 1), False),
        ([LATE] * OVERLOAD_WAKEUPS, True),
        ([LATE] * 20, True),
        ([LATE] * (OVERLOAD_WAKEUPS - 1) + [IN_TIME] + [LATE] * (OVERLOAD_WAKEUPS - 1), False),
        ([LATE] * OVERLOAD_WAKEUPS + [IN_TIME], False),
        ([LATE] * OVERLOAD_WAKEUPS + [IN_TIME] + [LATE] * OVERLOAD_WAKEUPS, True),
    ],
)
def test_only_lasting_lateness_is_overload(delays: list[float], overloaded: bool) -> None:
    overload = OverloadDetector()
    for delay in delays:
        overload.observe(delay)
    assert (overload.reason is not None) is overloaded
    assert overload.limit(0, 0.0) == 0
    assert overload.limit(50, 0.0) == (1 if overloaded else 50)


def test_overloaded_worker_claims_one_session_per_second() -> None:
    overload = OverloadDetector()
    for _ in range(OVERLOAD_WAKEUPS):
        overload.observe(0.32)
    assert overload.reason == "the event loop is 320 ms late"
    tenths = [at / 10 for at in range(35)]
    assert [at for at in tenths if overload.limit(50, at)] == [0.0, 1.0, 2.0, 3.0]
    overload.observe(0.0)
    assert [overload.limit(50, 3.5), overload.limit(50, 3.5)] == [50, 50]


async def _lag() -> None:
    while True:
        time.sleep(0.2)  # noqa: ASYNC251 - that is the point
        await anyio.lowlevel.checkpoint()


async def test_lagging_worker_logs_overload_and_continues(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.event_loop.LATE_WAKEUP_S", 0.05)

    async def pending() -> int:
        return int((await harness.redis.xpending(f"{harness.prefix}:sessions", GROUP))["pending"])

    async def more_than_first() -> int:
        count = await pending()
        return count if count > 1 else 0

    async with harness.worker() as worker:
        await eventually(lambda: harness.redis.exists(f"{harness.prefix}:workers"), "the worker")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_lag)
            await eventually(lambda: worker.readiness.reasons, "the lag to be noticed")
            (reason,) = worker.readiness.reasons
            assert reason.startswith("busy: the event loop is ")
            # A read that began before the lag was noticed may take any number: it takes the first.
            await harness.redis.xadd(f"{harness.prefix}:sessions", ENTRIES[0])
            await eventually(pending, "the first session to be taken")
            # One transaction, so that a reader sees all the others.
            async with harness.redis.pipeline() as announcements:
                for entry in ENTRIES[1:]:
                    announcements.xadd(f"{harness.prefix}:sessions", entry)
                await announcements.execute()
            taken = await eventually(more_than_first, "another session to be taken")
            assert taken < len(ENTRIES), "the others are for other workers"
            tasks.cancel_scope.cancel()
        await eventually(lambda: len(worker.running) == len(ENTRIES), "all sessions")
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
        await no_longer(lambda: worker.readiness.reasons, "the lag")
    assert words(events) == [1]
