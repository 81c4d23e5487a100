"""A worker whose event loop lags leaves new sessions to others."""

import time

import anyio
import anyio.lowlevel
import pytest

from tests.stage import PCM16, Stage, words
from worker.local.engines.script import say
from worker.overload import IN_A_ROW, LATE_S, Overload

LATE = LATE_S + 0.05
IN_TIME = LATE_S


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


async def test_a_lagging_worker_says_so_and_goes_on(stage: Stage) -> None:
    async with stage.worker() as worker:
        await stage.announce("call-1")
        with anyio.fail_after(60):
            while not worker.readiness.reasons:
                time.sleep(2 * LATE_S)  # noqa: ASYNC251 - that is the point
                await anyio.lowlevel.checkpoint()
        (reason,) = worker.readiness.reasons
        assert reason.startswith("busy: the event loop is ")
        await stage.play("call-1", say([1], PCM16), pause_s=0)
        events = (await stage.until_ended("call-1"))["call-1"]
        with anyio.fail_after(60):
            while worker.readiness.reasons:
                await anyio.sleep(0.01)
    assert words(events) == [1]
