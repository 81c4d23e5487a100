"""Sessions that reach a worker by two paths at once."""

from collections.abc import Iterable

import anyio
import pytest

from tests.support.harness import PCM16, Harness, check_order, words
from tests.support.polling import eventually
from worker.bus.ownership import ClaimResult, OwnedEntry, SessionLeases
from worker.leases.acquire import SessionAcquirer
from worker.local.emulator.engines.script import synthesize_words


@pytest.mark.parametrize("counts", [(1, 1), (1, 2), (2, 1)], ids=str)
async def test_entry_received_twice_runs_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int]
) -> None:
    """A heartbeat finds the entry while the reply that delivers it is in flight."""
    take, claim = SessionAcquirer._start, SessionLeases.claim
    claims: list[int] = []
    first_is_answered = anyio.Event()

    async def take_twice(acquirer: SessionAcquirer, owned: OwnedEntry) -> None:
        async with anyio.create_task_group() as tasks:
            for count in counts:
                tasks.start_soon(take, acquirer, OwnedEntry(owned.entry_id, count, owned.fields))

    async def claim_slowly(intake: SessionLeases, owned: OwnedEntry, *rest: object) -> ClaimResult:
        claims.append(owned.delivery_count)
        if owned.delivery_count == counts[0]:
            await anyio.sleep(0.01)  # in which the other begins, if it does
        else:
            await first_is_answered.wait()
        answer = await claim(intake, owned, *rest)  # type: ignore[arg-type]
        first_is_answered.set()
        return answer

    monkeypatch.setattr(SessionAcquirer, "_start", take_twice)
    monkeypatch.setattr(SessionLeases, "claim", claim_slowly)
    async with harness.worker() as worker:
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1, 2], PCM16), end=False, pause_s=0)
        running = await eventually(lambda: _counts(worker.running.leases), "the session")
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]
    assert running == [max(counts)]
    assert claims == ([1, 2] if counts == (1, 2) else [max(counts)])


def _counts(leases: Iterable[tuple[str, int]]) -> list[int]:
    return [count for _, count in leases]
