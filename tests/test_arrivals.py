"""Sessions that come to a worker by two ways at once."""

from collections.abc import Iterable

import anyio
import pytest

from tests.stage import PCM16, Stage, check_order, words
from tests.waiting import eventually
from worker.arrivals import Arrivals
from worker.bus.intake import Claim, Intake, Owned
from worker.local.engines.script import say


@pytest.mark.parametrize("counts", [(1, 1), (1, 2), (2, 1)], ids=str)
async def test_an_entry_that_comes_twice_is_run_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int]
) -> None:
    """As where a heartbeat finds it while the reply that brings it is on its way."""
    take, claim = Arrivals.take, Intake.claim
    claims: list[int] = []
    first_is_answered = anyio.Event()

    async def take_twice(arrivals: Arrivals, owned: Owned) -> None:
        async with anyio.create_task_group() as tasks:
            for count in counts:
                tasks.start_soon(take, arrivals, Owned(owned.entry, count, owned.fields))

    async def claim_slowly(intake: Intake, owned: Owned, *rest: object) -> Claim:
        claims.append(owned.count)
        if owned.count == counts[0]:
            await anyio.sleep(0.01)  # in which the other begins, if it does
        else:
            await first_is_answered.wait()
        answer = await claim(intake, owned, *rest)  # type: ignore[arg-type]
        first_is_answered.set()
        return answer

    monkeypatch.setattr(Arrivals, "take", take_twice)
    monkeypatch.setattr(Intake, "claim", claim_slowly)
    async with stage.worker() as worker:
        await stage.announce("call-1")
        await stage.play("call-1", say([1, 2], PCM16), end=False, pause_s=0)
        running = await eventually(lambda: _counts(worker.roster.fences), "the session")
        await stage.append("call-1", end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]
    assert running == [max(counts)]
    assert claims == ([1, 2] if counts == (1, 2) else [max(counts)])


def _counts(fences: Iterable[tuple[str, int]]) -> list[int]:
    return [count for _, count in fences]
