"""Tenure: keeping the sessions that are ours, and noticing those that are not, or not any more."""

from collections.abc import Callable
from functools import partial

from anyio.abc import TaskGroup

from worker.bus.client.connection import retry_while_unavailable
from worker.bus.ownership import OwnedEntry
from worker.context import WorkerContext
from worker.leases.acquire import SessionAcquirer
from worker.leases.running import RunningSessions


class LeaseKeeper:
    """Compares, once a heartbeat, what runs with what Redis lists."""

    def __init__(
        self,
        context: WorkerContext,
        running: RunningSessions,
        acquirer: SessionAcquirer,
        tasks: TaskGroup,
    ) -> None:
        self._context = context
        self._running = running
        self._acquirer = acquirer
        self._tasks = tasks
        self._unclaimed: set[str] = set()
        self._claiming: set[str] = set()
        self._restoring: set[str] = set()

    async def renew(self, *, takes: Callable[[], bool]) -> None:
        """Keep the leases; notice what was taken, lost or, as long as `takes`, never heard of."""
        ours = [*self._running.fences, *self._acquirer.claim_counts.items()]
        heartbeat = partial(self._context.ownership.heartbeat, ours)
        report = await retry_while_unavailable(self._context.health, heartbeat)
        for entry in report.taken:
            self._running.cancel(entry)
            self._context.retries.discard(entry)
        for entry in report.missing - self._restoring:
            self._restoring.add(entry)
            self._tasks.start_soon(self._restore_entry, entry)
        self._claim_unclaimed(dict(report.unclaimed), take=takes())

    async def _restore_entry(self, entry: str) -> None:
        """Put back an entry of ours that nobody holds."""
        try:
            with self._context.supervisor.isolate("heartbeat"):
                if session := self._running.get(entry):
                    # Another worker may own it by now, or its state is lost too.
                    session.verify_ownership()
                    await self._running.restore_entry_once(session)
                elif held := self._context.retries.get(entry):
                    await self._running.restore_entry(held)
                    self._context.retries.discard(entry)
        finally:
            self._restoring.discard(entry)

    def _claim_unclaimed(self, orphans: dict[str, int], *, take: bool) -> None:
        """Claim what the pending list calls ours but no reply told us of.

        Only what two heartbeats in a row report: a reply may just be on its way. What runs with
        a smaller count was another's meanwhile. No heartbeat waits for it: the master that holds
        one session's state may be away, and the others' leases run on.
        """
        for entry, count in orphans.items():
            running = self._running.get(entry)
            if running is not None:
                if running.ownership.fence.delivery_count >= count:
                    continue  # claimed anew since
            elif entry not in self._unclaimed or self._is_known(entry):
                continue
            if take and entry not in self._claiming:
                self._claiming.add(entry)
                self._acquirer.start_claim(partial(self._reclaim, entry, count))
        self._unclaimed = set(orphans)

    def _is_known(self, entry: str) -> bool:
        """Say whether a session waits after a crash, or is being claimed."""
        return self._acquirer.is_claiming(entry) or self._context.retries.get(entry) is not None

    async def _reclaim(self, entry: str, count: int) -> None:
        try:
            fields_of = partial(self._context.ownership.read_fields, entry)
            fields = await retry_while_unavailable(self._context.health, fields_of)
            if fields is not None:
                await self._acquirer.reclaim(OwnedEntry(entry, count, fields))
        finally:
            self._claiming.discard(entry)
