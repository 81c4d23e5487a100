"""Arrivals: sessions that come to this worker, new or from another, and how they are taken in."""

import random
import time
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from anyio.abc import TaskGroup

from schemas.keys import RELEASED
from worker.bus.client.connection import retry_while_unavailable
from worker.bus.liveness import Liveness
from worker.bus.ownership import OwnedEntry
from worker.bus.recovery import OrphanRecovery
from worker.context import WorkerContext
from worker.leases.claim import Claimer
from worker.leases.running import RunningSessions

CLAIM_POLL_MS = 100
"""How long intake waits for a new entry before it looks for ones given back."""

RECOVERY_JITTER_S = 0.5
"""Within which workers begin to look for lost sessions, each at another time: the first finds them,
and no other has to go through all states."""

CLAIM_BATCH_TIMEOUT_S = 1.0
"""How long intake waits for the sessions it found before it looks for more."""


class SessionAcquirer:
    """Finds sessions for one worker, claims them in one task group and starts them in another."""

    def __init__(
        self,
        context: WorkerContext,
        running: RunningSessions,
        liveness: Liveness,
        lease_ms: int,
        *,
        sessions: TaskGroup,
        claims: TaskGroup,
    ) -> None:
        self._context = context
        self._running = running
        self._liveness = liveness
        self._lease_ms = lease_ms
        self._sessions = sessions
        self._claims = claims
        self._claimer = Claimer(context)
        self.claim_counts: dict[str, int] = {}
        """Entry and delivery count of every claim under way."""
        self._raising: set[str] = set()  # entries whose count is raised for a claim
        self.claims_in_progress = 0
        """How many sessions are being taken in: found, and not in the running yet."""
        self._forgetting: set[str] = set()
        self._recovery = OrphanRecovery(context.redis, context.keys, context.ownership)
        self._restoring = False
        self._searching = False

    async def find(self, room: int) -> list[OwnedEntry]:
        """Return up to `room` sessions that are ours from now on: given back, orphaned, or new.

        Those that are under way come first: their callers speak, and what they said grows old.
        """
        intake = self._context.ownership
        dead = sorted(self._liveness.dead)
        adopted = await retry_while_unavailable(
            self._context.health, lambda: intake.take_over(room, self._lease_ms_now, dead)
        )
        if adopted.lost and not self._restoring:
            self._restoring = True
            self._claims.start_soon(self._recover_orphans)
        owners = {owned.owner for owned in adopted.owned} - {RELEASED}
        for owned in adopted.owned:
            fate = "killed" if owned.owner in dead else "silent"
            self._context.stats.takeovers["released" if owned.owner == RELEASED else fate] += 1
        if gone := (owners | set(dead)) - self._forgetting:
            self._forgetting |= gone
            self._claims.start_soon(self._remove_dead_workers, gone)
        if adopted.owned:
            return [*adopted.owned]
        return await retry_while_unavailable(
            self._context.health, lambda: intake.read_new(room, CLAIM_POLL_MS)
        )

    async def _recover_orphans(self) -> None:
        """Look for the sessions of entries that were lost with their owners."""
        unknown = False
        try:
            with self._context.supervisor.isolate("recovery"):
                await anyio.sleep(random.uniform(0, RECOVERY_JITTER_S))  # noqa: S311 - spreads load
                unknown = await retry_while_unavailable(
                    self._context.health, self._recovery.recover_known
                )
        finally:
            self._restoring = False
        if unknown and not self._searching:
            self._searching = True
            try:
                with self._context.supervisor.isolate("recovery"):
                    await retry_while_unavailable(self._context.health, self._recovery.recover_all)
            finally:
                self._searching = False

    async def _remove_dead_workers(self, owners: set[str]) -> None:
        """Take dead workers off the bus; what they owned does not wait for it."""
        try:
            with self._context.supervisor.isolate("liveness"):
                await self._liveness.remove_dead(owners)
        finally:
            self._forgetting -= owners

    @property
    def _lease_ms_now(self) -> int:
        """For how long owners may be silent now; to be asked before each try.

        Idle times ran on while Redis was away: for one lease after, owners get to speak first.
        """
        lease_ms = self._lease_ms
        return lease_ms if self._context.health.available_for_s * 1000 > lease_ms else 2**40

    async def claim_all(self, found: list[OwnedEntry]) -> None:
        """Take sessions in, together, and wait for that a little while.

        One that was killed should not wait for fifty others, nor those that come next for one
        whose keys are on a server that is away.
        """
        begun = [self.start_claim(partial(self.claim, owned)) for owned in found]
        with anyio.move_on_after(CLAIM_BATCH_TIMEOUT_S):
            for done in begun:
                await done.wait()

    def retry_crashed(self) -> None:
        """Begin to claim anew the sessions that crashed and have waited."""
        for ownership in self._context.retries.due(time.monotonic()):
            fence = ownership.fence
            owned = OwnedEntry(fence.entry_id, fence.delivery_count, ownership.fields)
            self.start_claim(partial(self.reclaim, owned))

    def start_claim(self, take: Callable[[], Awaitable[None]]) -> anyio.Event:
        """Begin to take a session in; return the event of having done so."""
        done = anyio.Event()
        self.claims_in_progress += 1

        async def begun() -> None:
            try:
                # A heartbeat tries again what a fault ends here, and the other claims go on.
                with self._context.supervisor.isolate("claim"):
                    await take()
            finally:
                self.claims_in_progress -= 1
                done.set()

        self._claims.start_soon(begun)
        return done

    async def reclaim(self, owned: OwnedEntry) -> None:
        """Claim what is ours already, with a larger count.

        Whatever a claim of ours before this one has under way is refused from then on.
        """
        intake = self._context.ownership
        self._raising.add(owned.entry_id)
        try:
            outbid = partial(intake.raise_delivery_count, owned, owned.delivery_count + 1)
            raised = await retry_while_unavailable(self._context.health, outbid)
        finally:
            self._raising.discard(owned.entry_id)
        if raised is not None:
            await self.claim(raised)

    def is_claiming(self, entry: str) -> bool:
        """Say whether a claim of this entry is under way."""
        return entry in self.claim_counts or entry in self._raising

    async def claim(self, owned: OwnedEntry) -> None:
        """Claim an entry that is ours, and run its session.

        Of two claims of one entry at once that with the larger count goes on.
        """
        entry, count = owned.entry_id, owned.delivery_count
        if self.claim_counts.get(entry, 0) >= count:
            return  # as a heartbeat found it before the reply that brought it
        running = self._running.get(entry)
        if running is not None and running.ownership.fence.delivery_count >= count:
            return
        self.claim_counts[entry] = count
        try:
            await self._running.cancel_and_wait(entry)  # it was another's meanwhile, and came back
            session = await self._claimer.claim(owned)
            if session is not None and self.claim_counts.get(entry) == count:
                self._running.start(session, self._sessions)
        finally:
            if self.claim_counts.get(entry) == count:
                del self.claim_counts[entry]
