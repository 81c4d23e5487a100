"""The sessions that this worker runs, each in its own cancel scope."""

import logging
import time
from collections.abc import Iterator
from functools import partial

import anyio
from anyio.abc import TaskGroup

from worker.bus.committer import CRASHED
from worker.bus.ownership import OwnedSession
from worker.context import WorkerContext
from worker.core.phases import Phase
from worker.errors import FencedError
from worker.session.session import Session

log = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 2.0
"""Timeout for committing published events before the session is released."""

VERDICT_MISSING = "missing"
"""Verdict of `commit.lua` if the session's state does not exist."""


class _Run:
    """One running session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.scope = anyio.CancelScope()
        self.over = anyio.Event()
        self.entry_restored = False
        """Whether the worker restored the session's entry after Redis lost it."""


class RunningSessions:
    """Runs sessions and keeps track of them."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._runs: dict[str, _Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Session]:
        """Iterate over a copy, so that sessions may start and end meanwhile."""
        return iter([run.session for run in self._runs.values()])

    @property
    def leases(self) -> list[tuple[str, int]]:
        """(entry id, delivery count) of every session, including those that wait for a retry."""
        running = [run.session.ownership for run in self._runs.values()]
        return [
            (ownership.fence.entry_id, ownership.fence.delivery_count)
            for ownership in running + self._context.retries.waiting
        ]

    def get(self, entry_id: str) -> Session | None:
        """Return the session that runs for this entry."""
        run = self._runs.get(entry_id)
        return run.session if run else None

    def start(self, session: Session, tasks: TaskGroup) -> None:
        """Run `session` until it ends, is cancelled or is released."""
        run = _Run(session)
        self._runs[session.ownership.fence.entry_id] = run
        tasks.start_soon(self._run, run)

    async def _run(self, run: _Run) -> None:
        session = run.session
        ownership = session.ownership
        entry_id = ownership.fence.entry_id
        end_lost = False
        try:
            with run.scope:
                await session.run()
                complete = partial(
                    self._context.leases.complete_ended, entry_id, ownership.entry, ownership.run
                )
                end_lost = not await self._context.health.retry(complete)
                if end_lost:
                    log.warning("%s: Redis lost the session's end, repeating it", session.name)
                else:
                    log.info("%s: session ended", session.name)
        except FencedError as error:
            log.info("%s: lease lost, stopping (%s)", session.name, error)
        except Exception:
            # An internal error must not end the other sessions.
            log.exception("%s: session crashed", session.name)
            session.fail()
        finally:
            del self._runs[entry_id]
            self._context.permits.discard(entry_id)
            if session.fenced_reason == CRASHED:
                self._context.stats.internal_errors["session"] += 1
                delay_s = self._context.retries.record(ownership, time.monotonic())
                log.warning("%s: retrying in %g s", session.name, delay_s)
            else:
                self._context.retries.discard(entry_id)
            run.over.set()
        if end_lost or session.fenced_reason == VERDICT_MISSING:
            # If the entry is there, a heartbeat or another worker claims it again.
            with self._context.supervisor.isolate("session"):
                await self._restore_entry_once(run)

    async def restore_running(self, entry_id: str) -> None:
        """Restore the entry of a running session, which Redis lost, unless it was restored once."""
        if run := self._runs.get(entry_id):
            # Another worker may own it already, or Redis may have lost its state too.
            run.session.verify_ownership()
            await self._restore_entry_once(run)

    async def _restore_entry_once(self, run: _Run) -> None:
        """Restore, once, a session's entry that Redis lost; the session continues or restarts."""
        if run.entry_restored:
            return
        run.entry_restored = True
        restored = False
        try:
            restored = await self.restore_entry(run.session.ownership)
        finally:
            run.entry_restored = restored

    async def restore_entry(self, ownership: OwnedSession) -> bool:
        """Restore a session's entry if Redis lost it; return whether it was restored.

        Nothing is restored if another worker has claimed the session under another entry.
        """
        health, leases = self._context.health, self._context.leases
        if await health.retry(partial(leases.has_other_owner, ownership)):
            return False
        after = await health.retry(leases.last_entry)
        entry_id, run, fields = ownership.fence.entry_id, ownership.run, ownership.fields
        restored = await health.retry(partial(leases.restore_entry, entry_id, run, fields, after))
        if restored:
            log.warning("%s: session entry restored (Redis lost it)", ownership.name)
        return restored

    async def cancel_and_wait(self, entry_id: str) -> None:
        """Stop running a session and wait until it has stopped."""
        if run := self._runs.get(entry_id):
            run.scope.cancel()
            await run.over.wait()

    async def stop_earlier_runs(self, session: Session) -> None:
        """Stop the runs of a session that began before this worker claimed its restored entry.

        Redis rejects what they commit, and only the new run may have a socket.
        """
        entry, entry_id = session.ownership.entry, session.ownership.fence.entry_id
        if session.ownership.run == entry_id:
            return  # it is the first entry
        for earlier in self:
            known, known_id = earlier.ownership.entry, earlier.ownership.fence.entry_id
            same = (known.lane, known.session) == (entry.lane, entry.session)
            if same and known_id != entry_id:
                log.info("%s: stopping its earlier run (its entry was restored)", earlier.name)
                await self.cancel_and_wait(known_id)

    def cancel(self, entry_id: str) -> None:
        """Stop a session whose lease this worker lost; publish nothing."""
        run = self._runs.get(entry_id)
        if run is not None and not run.scope.cancel_called:
            session = run.session
            reason = session.fenced_reason or "another worker took it"
            log.info("%s: lease lost, stopping (%s)", session.name, reason)
            run.scope.cancel()

    async def release(self, session: Session) -> None:
        """Stop running a session and let any worker take it immediately.

        A session that has already ended is allowed to finish instead of being released.
        """
        began = time.time()
        fence = session.ownership.fence
        run = self._runs.get(fence.entry_id)
        if run is None:
            return  # it ended meanwhile
        if session.phase is Phase.OVER:
            with anyio.move_on_after(RELEASE_TIMEOUT_S):
                await run.over.wait()
                return
        await self.cancel_and_wait(fence.entry_id)
        try:
            with anyio.move_on_after(RELEASE_TIMEOUT_S):
                await session.wait_committed()
                release = partial(
                    self._context.leases.release, [(fence.entry_id, fence.delivery_count)]
                )
                if not await self._context.health.retry(release):
                    await self._restore_entry_once(run)  # unless another worker owns it
                session.trace.released(fence.entry_id, began)
                log.info("%s: released", session.name)
        except FencedError as error:
            log.info("%s: not released (%s)", session.name, error)

    async def release_waiting(self) -> None:
        """Release the sessions that wait for a retry."""
        waiting = self._context.retries.waiting
        pairs = [(each.fence.entry_id, each.fence.delivery_count) for each in waiting]
        if waiting:
            with anyio.move_on_after(RELEASE_TIMEOUT_S):
                released = await self._context.health.retry(
                    lambda: self._context.leases.release(pairs)
                )
                for ownership in waiting if released < len(waiting) else ():
                    await self.restore_entry(ownership)
