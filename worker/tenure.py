"""Tenure: keeping the sessions that are ours, and noticing those that are not, or not any more."""

from collections.abc import Callable
from functools import partial

from anyio.abc import TaskGroup

from worker.arrivals import Arrivals
from worker.bus.connection import patiently
from worker.bus.intake import Owned
from worker.host import Host
from worker.roster import Roster


class Tenure:
    """Compares, once a heartbeat, what runs with what Redis lists."""

    def __init__(self, host: Host, roster: Roster, arrivals: Arrivals, tasks: TaskGroup) -> None:
        self._host = host
        self._roster = roster
        self._arrivals = arrivals
        self._tasks = tasks
        self._unheard: set[str] = set()
        self._claiming: set[str] = set()
        self._announcing: set[str] = set()

    async def beat(self, *, takes: Callable[[], bool]) -> None:
        """Keep the leases; notice what was taken, lost or, as long as `takes`, never heard of."""
        ours = [*self._roster.fences, *self._arrivals.claiming.items()]
        heartbeat = partial(self._host.intake.heartbeat, ours)
        report = await patiently(self._host.health, heartbeat)
        for entry in report.taken:
            self._roster.drop(entry)
            self._host.crashes.forget(entry)
        for entry in report.nowhere - self._announcing:
            self._announcing.add(entry)
            self._tasks.start_soon(self._announce_again, entry)
        self._claim_unheard(dict(report.orphans), take=takes())

    async def _announce_again(self, entry: str) -> None:
        """Put back an entry of ours that nobody holds."""
        try:
            with self._host.faults.contained("tenure"):
                if session := self._roster.get(entry):
                    session.prove()  # it may be another's by now, or its state lost with the rest
                    await self._roster.announce_again(session)
                elif held := self._host.crashes.get(entry):
                    await self._roster.put_back(held)
                    self._host.crashes.forget(entry)
        finally:
            self._announcing.discard(entry)

    def _claim_unheard(self, orphans: dict[str, int], *, take: bool) -> None:
        """Claim what the pending list calls ours but no reply told us of.

        Only what two heartbeats in a row report: a reply may just be on its way. What runs with
        a smaller count was another's meanwhile. No heartbeat waits for it: the master that holds
        one session's state may be away, and the others' leases run on.
        """
        for entry, count in orphans.items():
            running = self._roster.get(entry)
            if running is not None:
                if running.ownership.fence.count >= count:
                    continue  # claimed anew since
            elif entry not in self._unheard or self._is_known(entry):
                continue
            if take and entry not in self._claiming:
                self._claiming.add(entry)
                self._arrivals.begin(partial(self._claim_anew, entry, count))
        self._unheard = set(orphans)

    def _is_known(self, entry: str) -> bool:
        """Say whether a session waits after a crash, or is being claimed."""
        return self._arrivals.is_claiming(entry) or self._host.crashes.get(entry) is not None

    async def _claim_anew(self, entry: str, count: int) -> None:
        try:
            fields_of = partial(self._host.intake.fields_of, entry)
            fields = await patiently(self._host.health, fields_of)
            if fields is not None:
                await self._arrivals.take_anew(Owned(entry, count, fields))
        finally:
            self._claiming.discard(entry)
