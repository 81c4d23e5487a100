"""Arrivals: sessions that come to this worker, new or from another, and how they are taken in."""

import random
import time
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from anyio.abc import TaskGroup

from schemas.keys import RELEASED
from worker.bus.connection import patiently
from worker.bus.intake import Owned
from worker.bus.liveness import Liveness
from worker.bus.lost import LostSessions
from worker.claims import Claimer
from worker.host import Host
from worker.roster import Roster

INTAKE_BLOCK_MS = 100
"""How long intake waits for a new entry before it looks for ones given back."""

RESTORE_S = 0.5
"""Within which workers begin to look for lost sessions, each at another time: the first finds them,
and no other has to go through all states."""

TAKE_S = 1.0
"""How long intake waits for the sessions it found before it looks for more."""


class Arrivals:
    """Finds sessions for one worker, claims them in one task group and starts them in another."""

    def __init__(
        self,
        host: Host,
        roster: Roster,
        liveness: Liveness,
        lease_ms: int,
        *,
        sessions: TaskGroup,
        claims: TaskGroup,
    ) -> None:
        self._host = host
        self._roster = roster
        self._liveness = liveness
        self._lease_ms = lease_ms
        self._sessions = sessions
        self._claims = claims
        self._claimer = Claimer(host)
        self.claiming: dict[str, int] = {}
        """Entry and delivery count of every claim under way."""
        self._raising: set[str] = set()  # entries whose count is raised for a claim
        self.under_way = 0
        """How many sessions are being taken in: found, and not in the roster yet."""
        self._forgetting: set[str] = set()
        self._lost = LostSessions(host.redis, host.keys, host.intake)
        self._restoring = False
        self._searching = False

    async def look_for(self, room: int) -> list[Owned]:
        """Return up to `room` sessions that are ours from now on: given back, orphaned, or new.

        Those that are under way come first: their callers speak, and what they said grows old.
        """
        intake = self._host.intake
        dead = sorted(self._liveness.dead)
        adopted = await patiently(
            self._host.health, lambda: intake.adopt(room, self._patience_ms, dead)
        )
        if adopted.lost and not self._restoring:
            self._restoring = True
            self._claims.start_soon(self._restore)
        owners = {owned.owner for owned in adopted.owned} - {RELEASED}
        for owned in adopted.owned:
            fate = "killed" if owned.owner in dead else "silent"
            self._host.stats.takeovers["released" if owned.owner == RELEASED else fate] += 1
        if gone := (owners | set(dead)) - self._forgetting:
            self._forgetting |= gone
            self._claims.start_soon(self._forget, gone)
        if adopted.owned:
            return [*adopted.owned]
        return await patiently(self._host.health, lambda: intake.read_new(room, INTAKE_BLOCK_MS))

    async def _restore(self) -> None:
        """Look for the sessions of entries that were lost with their owners."""
        unknown = False
        try:
            with self._host.faults.contained("restore"):
                await anyio.sleep(random.uniform(0, RESTORE_S))  # noqa: S311 - spreads load
                unknown = await patiently(self._host.health, self._lost.restore)
        finally:
            self._restoring = False
        if unknown and not self._searching:
            self._searching = True
            try:
                with self._host.faults.contained("restore"):
                    await patiently(self._host.health, self._lost.restore_all)
            finally:
                self._searching = False

    async def _forget(self, owners: set[str]) -> None:
        """Take dead workers off the bus; what they owned does not wait for it."""
        try:
            with self._host.faults.contained("liveness"):
                await self._liveness.forget(owners)
        finally:
            self._forgetting -= owners

    @property
    def _patience_ms(self) -> int:
        """For how long owners may be silent now; to be asked before each try.

        Idle times ran on while Redis was away: for one lease after, owners get to speak first.
        """
        lease_ms = self._lease_ms
        return lease_ms if self._host.health.up_for_s * 1000 > lease_ms else 2**40

    async def take_all(self, found: list[Owned]) -> None:
        """Take sessions in, together, and wait for that a little while.

        One that was killed should not wait for fifty others, nor those that come next for one
        whose keys are on a server that is away.
        """
        begun = [self.begin(partial(self.take, owned)) for owned in found]
        with anyio.move_on_after(TAKE_S):
            for done in begun:
                await done.wait()

    def try_again(self) -> None:
        """Begin to claim anew the sessions that crashed and have waited."""
        for ownership in self._host.crashes.due(time.monotonic()):
            fence = ownership.fence
            owned = Owned(fence.entry, fence.count, ownership.fields)
            self.begin(partial(self.take_anew, owned))

    def begin(self, take: Callable[[], Awaitable[None]]) -> anyio.Event:
        """Begin to take a session in; return the event of having done so."""
        done = anyio.Event()
        self.under_way += 1

        async def begun() -> None:
            try:
                # A heartbeat tries again what a fault ends here, and the other claims go on.
                with self._host.faults.contained("claim"):
                    await take()
            finally:
                self.under_way -= 1
                done.set()

        self._claims.start_soon(begun)
        return done

    async def take_anew(self, owned: Owned) -> None:
        """Claim what is ours already, with a larger count.

        Whatever a claim of ours before this one has under way is refused from then on.
        """
        intake = self._host.intake
        self._raising.add(owned.entry)
        try:
            outbid = partial(intake.outbid, owned, owned.count + 1)
            raised = await patiently(self._host.health, outbid)
        finally:
            self._raising.discard(owned.entry)
        if raised is not None:
            await self.take(raised)

    def is_claiming(self, entry: str) -> bool:
        """Say whether a claim of this entry is under way."""
        return entry in self.claiming or entry in self._raising

    async def take(self, owned: Owned) -> None:
        """Claim an entry that is ours, and run its session.

        Of two claims of one entry at once that with the larger count goes on.
        """
        entry, count = owned.entry, owned.count
        if self.claiming.get(entry, 0) >= count:
            return  # as a heartbeat found it before the reply that brought it
        running = self._roster.get(entry)
        if running is not None and running.ownership.fence.count >= count:
            return
        self.claiming[entry] = count
        try:
            await self._roster.let_go(entry)  # it was another's meanwhile, and came back
            session = await self._claimer.take(owned)
            if session is not None and self.claiming.get(entry) == count:
                self._roster.start(session, self._sessions)
        finally:
            if self.claiming.get(entry) == count:
                del self.claiming[entry]
