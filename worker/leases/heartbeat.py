"""Heartbeats: renew this worker's leases, and detect leases that are lost or unclaimed."""

from collections.abc import Callable
from functools import partial

from anyio.abc import TaskGroup

from worker.context import WorkerContext
from worker.leases.acquire import SessionAcquirer
from worker.leases.running import RunningSessions


class LeaseKeeper:
    """Compares the running sessions with Redis's pending list at every heartbeat."""

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
        self._restoring: set[str] = set()

    async def renew(self, *, may_claim: Callable[[], bool]) -> None:
        """Renew the leases; handle taken and lost entries and, if `may_claim()`, unclaimed ones."""
        leases = [*self._running.leases, *self._acquirer.claim_counts.items()]
        heartbeat = partial(self._context.leases.heartbeat, leases)
        report = await self._context.health.retry(heartbeat)
        for entry_id in report.taken_by_others:
            self._running.cancel(entry_id)
            self._context.retries.discard(entry_id)
        for entry_id in report.missing - self._restoring:
            self._restoring.add(entry_id)
            self._tasks.start_soon(self._restore_entry, entry_id)
        self._claim_unclaimed(dict(report.unclaimed), may_claim=may_claim())

    async def _restore_entry(self, entry_id: str) -> None:
        """Restore a pending entry of this worker that Redis lost."""
        try:
            with self._context.supervisor.isolate("heartbeat"):
                if self._running.get(entry_id):
                    await self._running.restore_running(entry_id)
                elif waiting := self._context.retries.get(entry_id):
                    await self._running.restore_entry(waiting)
                    self._context.retries.discard(entry_id)
        finally:
            self._restoring.discard(entry_id)

    def _claim_unclaimed(self, unclaimed: dict[str, int], *, may_claim: bool) -> None:
        """Claim entries that are pending for this worker but arrived in no reply.

        An entry must be reported by two heartbeats in a row: its reply may still be on the way. A
        session that runs with a smaller count was owned by another worker in between. Heartbeats
        do not wait for claims: one session's Redis master may be down while other leases expire.
        """
        for entry_id, count in unclaimed.items():
            session = self._running.get(entry_id)
            if session is not None:
                needs_claim = session.ownership.fence.delivery_count < count
            else:
                waits_for_retry = self._context.retries.get(entry_id) is not None
                needs_claim = entry_id in self._unclaimed and not waits_for_retry
            if may_claim and needs_claim and not self._acquirer.is_claiming(entry_id):
                self._acquirer.reclaim(entry_id, count)
        self._unclaimed = set(unclaimed)
