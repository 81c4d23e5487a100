"""Acquisition of sessions: new ones, and released or abandoned ones, which are taken over.

`worker.bus.liveness` decides which workers are dead: at once after a kill, or after a lease.
"""

import random
import time
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from anyio.abc import TaskGroup

from schemas.audio import Fields
from schemas.keys import RELEASED
from worker.bus.liveness import Liveness
from worker.bus.lost_entries import OrphanRecovery
from worker.bus.ownership import OwnedEntry
from worker.context import WorkerContext
from worker.leases.claim import Claimer
from worker.leases.running import RunningSessions

CLAIM_POLL_MS = 100
"""Timeout for reading new entries, after which the worker looks for released ones again."""

RECOVERY_JITTER_S = 0.5
"""Maximum random delay before a worker looks for lost sessions. The first worker finds them, so the
others need not scan all states."""

CLAIM_BATCH_TIMEOUT_S = 1.0
"""Timeout for claiming a batch, after which the worker looks for more sessions."""


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
        """Delivery count of every claim in progress, by entry."""
        self._raising: set[str] = set()  # entries whose delivery count is being raised
        self._claiming = 0
        self._removing: set[str] = set()  # dead workers whose records are being deleted
        self._recovery = OrphanRecovery(context.redis, context.keys, context.leases)
        self._recovering = False
        self._searching = False

    @property
    def claims_in_progress(self) -> int:
        """Number of sessions that were found and are not running yet.

        A rejected one needs no room, however long its dead letter waits for Redis.
        """
        return self._claiming - self._context.dead_letters.writes_in_progress

    async def find(self, room: int) -> list[OwnedEntry]:
        """Return up to `room` sessions that this worker now owns: taken over or new.

        Sessions to take over come first: their audio is already waiting.
        """
        leases = self._context.leases
        dead = sorted(self._liveness.dead)
        declined = self._context.declined.current(time.monotonic())
        taken_over = await self._context.health.retry(
            lambda: leases.take_over(room, self._lease_ms_now, dead, declined)
        )
        if taken_over.lost and not self._recovering:
            self._recovering = True
            self._claims.start_soon(self._recover_orphans)
        owners = {owned.owner for owned in taken_over.owned} - {RELEASED}
        for owned in taken_over.owned:
            cause = "killed" if owned.owner in dead else "silent"
            self._context.stats.takeovers["released" if owned.owner == RELEASED else cause] += 1
        if gone := (owners | set(dead)) - self._removing:
            self._removing |= gone
            self._claims.start_soon(self._remove_dead_workers, gone)
        if taken_over.owned:
            return [*taken_over.owned]
        return await self._context.health.retry(lambda: leases.read_new(room, CLAIM_POLL_MS))

    async def _recover_orphans(self) -> None:
        """Recover sessions whose entries Redis lost and whose owners are dead."""
        unknown = False
        try:
            with self._context.supervisor.isolate("recovery"):
                await anyio.sleep(random.uniform(0, RECOVERY_JITTER_S))  # noqa: S311 - spreads load
                unknown = await self._context.health.retry(self._recovery.recover_known)
        finally:
            self._recovering = False
        if unknown and not self._searching:
            self._searching = True
            try:
                with self._context.supervisor.isolate("recovery"):
                    await self._context.health.retry(self._recovery.recover_all)
            finally:
                self._searching = False

    async def _remove_dead_workers(self, owners: set[str]) -> None:
        """Delete dead workers from Redis; their sessions do not wait for it."""
        try:
            with self._context.supervisor.isolate("liveness"):
                await self._liveness.remove_dead(owners)
        finally:
            self._removing -= owners

    @property
    def _lease_ms_now(self) -> int:
        """Current lease timeout in milliseconds; read it again before each retry.

        Idle times grow during a Redis outage. For one lease after it, no lease expires, so that
        owners can renew theirs first.
        """
        lease_ms = self._lease_ms
        return lease_ms if self._context.health.available_for_s * 1000 > lease_ms else 2**40

    async def start_all(self, found: list[OwnedEntry]) -> None:
        """Start sessions concurrently and wait up to `CLAIM_BATCH_TIMEOUT_S`.

        A killed worker's session does not wait for fifty others. The next batch does not wait for
        a session whose Redis server is unavailable.
        """
        claims = [self._in_background(partial(self._start, owned)) for owned in found]
        with anyio.move_on_after(CLAIM_BATCH_TIMEOUT_S):
            for done in claims:
                await done.wait()

    def retry_crashed(self) -> None:
        """Start to reclaim the crashed sessions whose retry delay is over."""
        for ownership in self._context.retries.take_due(time.monotonic()):
            fence = ownership.fence
            self.reclaim(fence.entry_id, fence.delivery_count, ownership.fields)

    def _in_background(self, claim: Callable[[], Awaitable[None]]) -> anyio.Event:
        """Run a claim in its own task; return an event that is set when the claim is done."""
        done = anyio.Event()
        self._claiming += 1

        async def run_claim() -> None:
            try:
                # After an internal error, a heartbeat retries this claim; the others continue.
                with self._context.supervisor.isolate("claim"):
                    await claim()
            finally:
                self._claiming -= 1
                done.set()

        self._claims.start_soon(run_claim)
        return done

    def reclaim(self, entry_id: str, count: int, fields: Fields | None = None) -> None:
        """Start to claim an entry that this worker already owns, with a larger delivery count.

        Redis then rejects all commits of this worker's earlier claim. If `fields` is None, they are
        read from the stream.
        """
        self._raising.add(entry_id)
        self._in_background(partial(self._restart, entry_id, count, fields))

    async def _restart(self, entry_id: str, count: int, fields: Fields | None) -> None:
        leases, health = self._context.leases, self._context.health
        try:
            if fields is None:
                fields = await health.retry(partial(leases.read_fields, entry_id))
            if fields is None:
                return  # the entry left the stream
            owned = OwnedEntry(entry_id, count, fields)
            raised = await health.retry(partial(leases.raise_delivery_count, owned, count + 1))
        finally:
            self._raising.discard(entry_id)
        if raised is not None:
            await self._start(raised)

    def is_claiming(self, entry_id: str) -> bool:
        """Return whether a claim of this entry is in progress."""
        return entry_id in self.claim_counts or entry_id in self._raising

    async def _start(self, owned: OwnedEntry) -> None:
        """Claim an entry that this worker owns, and run its session.

        Of two concurrent claims of one entry, the one with the larger delivery count continues.
        """
        entry_id, count = owned.entry_id, owned.delivery_count
        if self.claim_counts.get(entry_id, 0) >= count:
            return  # a heartbeat found the entry before its reply arrived
        earlier = self._running.get(entry_id)
        if earlier is not None and earlier.ownership.fence.delivery_count >= count:
            return
        self.claim_counts[entry_id] = count
        try:
            await self._running.cancel_and_wait(entry_id)  # another worker owned it in between
            session = await self._claimer.open_session(owned)
            if session is not None:
                await self._running.stop_earlier_runs(session)
            if session is not None and self.claim_counts.get(entry_id) == count:
                self._running.start(session, self._sessions)
        finally:
            if self.claim_counts.get(entry_id) == count:
                del self.claim_counts[entry_id]
