"""The roster: the sessions this worker runs, each in a cancel scope of its own."""

import logging
import time
from collections.abc import Iterator
from functools import partial

import anyio
from anyio.abc import TaskGroup

from worker.bus.commits import CRASHED
from worker.bus.connection import patiently
from worker.bus.intake import Ownership
from worker.errors import CommitRefused
from worker.host import Host
from worker.sessions.session import Phase, Session

log = logging.getLogger(__name__)

GIVE_BACK_GRACE_S = 2.0
"""How long what was published may take to be committed before the session is let go."""


STATE_LOST = "missing"
"""Verdict of `commit.lua` where there is no state to commit to."""


class _Run:
    """One session under way."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.scope = anyio.CancelScope()
        self.over = anyio.Event()


class Roster:
    """Runs sessions and knows which."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._runs: dict[str, _Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, entry: object) -> bool:
        return entry in self._runs

    def __iter__(self) -> Iterator[Session]:
        """Iterate over the sessions, safe against changes meanwhile."""
        return iter([run.session for run in self._runs.values()])

    @property
    def fences(self) -> list[tuple[str, int]]:
        """(entry, delivery count) of every session, those that wait after a crash included."""
        running = [run.session.ownership for run in self._runs.values()]
        return [
            (ownership.fence.entry, ownership.fence.count)
            for ownership in running + self._host.crashes.held
        ]

    def get(self, entry: str) -> Session | None:
        """Return the session that runs for this entry."""
        run = self._runs.get(entry)
        return run.session if run else None

    def start(self, session: Session, tasks: TaskGroup) -> None:
        """Run `session` to its end, or until it is dropped or given back."""
        run = _Run(session)
        self._runs[session.ownership.fence.entry] = run
        tasks.start_soon(self._run, run)

    async def _run(self, run: _Run) -> None:
        session = run.session
        entry = session.ownership.fence.entry
        try:
            with run.scope:
                await session.run()
                await patiently(self._host.health, lambda: self._host.intake.settle(entry))
                log.info("%s: session ended", session.name)
        except CommitRefused as refusal:
            log.info("%s: let go (%s)", session.name, refusal)
        except Exception:
            # A fault of ours must not take the other sessions down.
            log.exception("%s: session crashed", session.name)
            session.crashed()
        finally:
            del self._runs[entry]
            self._host.gate.forget(entry)
            if session.refused == CRASHED:
                self._hold(session.ownership)
            else:
                self._host.crashes.forget(entry)
            run.over.set()
        if session.refused == STATE_LOST:
            with self._host.faults.contained("session"):
                await self.announce_again(session)

    def _hold(self, ownership: Ownership) -> None:
        self._host.stats.faults["session"] += 1
        pause_s = self._host.crashes.note(ownership, time.monotonic())
        log.warning("%s: tried again in %g s", ownership.name, pause_s)

    async def announce_again(self, session: Session) -> None:
        """Put back, once, the entry of a session that Redis lost: it goes on, or starts afresh."""
        if session.announced_again:
            return
        session.announced_again = True
        vanished = False
        try:
            vanished = await self.put_back(session.ownership)
        finally:
            session.announced_again = vanished

    async def put_back(self, ownership: Ownership) -> bool:
        """Put the entry of a session back, if Redis lost it; return whether it had.

        Not that of a session which another claimed meanwhile, by the entry it was given then.
        """
        health, intake = self._host.health, self._host.intake
        if not await patiently(health, partial(intake.is_ours, ownership)):
            return False
        after = await patiently(health, intake.last_entry)
        vanished = await patiently(health, partial(intake.put_back, ownership, after))
        if vanished:
            log.warning("%s: Redis lost its entry; put back", ownership.name)
        return vanished

    async def let_go(self, entry: str) -> None:
        """Stop running a session and wait until it has stopped."""
        if run := self._runs.get(entry):
            run.scope.cancel()
            await run.over.wait()

    def drop(self, entry: str) -> None:
        """Stop running a session that is not ours any more; publish nothing."""
        run = self._runs.get(entry)
        if run is not None and not run.scope.cancel_called:
            session = run.session
            log.info("%s: let go (%s)", session.name, session.refused or "another worker has it")
            run.scope.cancel()

    async def give_back(self, session: Session) -> None:
        """Stop running a session and let any worker take it at once.

        One that is over, but for being crossed off, is let end: nobody else would have to do
        with it but to find that out.
        """
        began = time.time()
        fence = session.ownership.fence
        run = self._runs.get(fence.entry)
        if run is not None and session.phase is Phase.OVER:
            with anyio.move_on_after(GIVE_BACK_GRACE_S):
                await run.over.wait()
                return
        await self.let_go(fence.entry)
        try:
            with anyio.move_on_after(GIVE_BACK_GRACE_S):
                await session.settle()
                release = partial(self._host.intake.release, [(fence.entry, fence.count)])
                if not await patiently(self._host.health, release):
                    await self.announce_again(session)  # unless it is another's by now
                session.trace.handed_over(fence.entry, began)
                log.info("%s: given back", session.name)
        except CommitRefused as refusal:
            log.info("%s: not given back (%s)", session.name, refusal)

    async def give_back_held(self) -> None:
        """Let any worker take the sessions that wait to be tried again."""
        held = self._host.crashes.held
        pairs = [(each.fence.entry, each.fence.count) for each in held]
        if held:
            with anyio.move_on_after(GIVE_BACK_GRACE_S):
                given = await patiently(self._host.health, lambda: self._host.intake.release(pairs))
                for ownership in held if given < len(held) else ():
                    await self.put_back(ownership)
