"""A worker whose event loop lags leaves new sessions to others."""

import time
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from schemas.keys import GROUP
from tests.stage import PCM16, Stage, words
from tests.waiting import eventually, no_longer
from worker.local.engines.script import say
from worker.overload import IN_A_ROW, LATE_S, Overload

LATE = LATE_S + 0.05
IN_TIME = LATE_S
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
        ([LATE] * (IN_A_ROW - 1), False),
        ([LATE] * IN_A_ROW, True),
        ([LATE] * 20, True),
        ([LATE] * (IN_A_ROW - 1) + [IN_TIME] + [LATE] * (IN_A_ROW - 1), False),
        ([LATE] * IN_A_ROW + [IN_TIME], False),
        ([LATE] * IN_A_ROW + [IN_TIME] + [LATE] * IN_A_ROW, True),
    ],
)
def test_only_lateness_that_lasts_is_an_overload(delays: list[float], overloaded: bool) -> None:
    overload = Overload()
    for delay in delays:
        overload.observe(delay)
    assert (overload.fault is not None) is overloaded
    assert overload.room(0, 0.0) == 0
    assert overload.room(50, 0.0) == (1 if overloaded else 50)


def test_an_overloaded_worker_takes_one_session_a_second() -> None:
    overload = Overload()
    for _ in range(IN_A_ROW):
        overload.observe(0.32)
    assert overload.fault == "the event loop is 320 ms late"
    tenths = [at / 10 for at in range(35)]
    assert [at for at in tenths if overload.room(50, at)] == [0.0, 1.0, 2.0, 3.0]
    overload.observe(0.0)
    assert [overload.room(50, 3.5), overload.room(50, 3.5)] == [50, 50]


async def _lag() -> None:
    while True:
        time.sleep(0.2)  # noqa: ASYNC251 - that is the point
        await anyio.lowlevel.checkpoint()


async def test_a_lagging_worker_says_so_and_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.overload.LATE_S", 0.05)

    async def pending() -> int:
        return int((await stage.redis.xpending(f"{stage.prefix}:sessions", GROUP))["pending"])

    async with stage.worker() as worker:
        await eventually(lambda: stage.redis.exists(f"{stage.prefix}:workers"), "the worker")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_lag)
            await eventually(lambda: worker.readiness.reasons, "the lag to be noticed")
            (reason,) = worker.readiness.reasons
            assert reason.startswith("busy: the event loop is ")
            async with stage.redis.pipeline() as announcements:  # whoever sees one sees all
                for entry in ENTRIES:
                    announcements.xadd(f"{stage.prefix}:sessions", entry)
                await announcements.execute()
            taken = await eventually(pending, "a session to be taken")
            assert taken < len(ENTRIES), "the others are for other workers"
            tasks.cancel_scope.cancel()
        await eventually(lambda: len(worker.roster) == len(ENTRIES), "all sessions")
        await stage.play("call-1", say([1], PCM16), pause_s=0)
        events = (await stage.until_ended("call-1"))["call-1"]
        await no_longer(lambda: worker.readiness.reasons, "the lag")
    assert words(events) == [1]
