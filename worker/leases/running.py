"""The running: the sessions this worker runs, each in a cancel scope of its own."""

import logging
import time
from collections.abc import Iterator
from functools import partial

import anyio
from anyio.abc import TaskGroup

from worker.bus.client.connection import retry_while_unavailable
from worker.bus.committer import INTERNAL_ERROR
from worker.bus.ownership import Ownership
from worker.context import WorkerContext
from worker.errors import FencedError
from worker.session.session import Phase, Session

log = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 2.0
"""How long what was published may take to be committed before the session is let go."""


VERDICT_MISSING = "missing"
"""Verdict of `commit.lua` where there is no state to commit to."""


class _Run:
    """One session under way."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.scope = anyio.CancelScope()
        self.over = anyio.Event()


class RunningSessions:
    """Runs sessions and knows which."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
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
            (ownership.fence.entry_id, ownership.fence.delivery_count)
            for ownership in running + self._context.retries.waiting
        ]

    def get(self, entry: str) -> Session | None:
        """Return the session that runs for this entry."""
        run = self._runs.get(entry)
        return run.session if run else None

    def start(self, session: Session, tasks: TaskGroup) -> None:
        """Run `session` to its end, or until it is dropped or given back."""
        run = _Run(session)
        self._runs[session.ownership.fence.entry_id] = run
        tasks.start_soon(self._run, run)

    async def _run(self, run: _Run) -> None:
        session = run.session
        entry = session.ownership.fence.entry_id
        try:
            with run.scope:
                await session.run()
                await retry_while_unavailable(
                    self._context.health, lambda: self._context.ownership.complete(entry)
                )
                log.info("%s: session ended", session.name)
        except FencedError as refusal:
            log.info("%s: let go (%s)", session.name, refusal)
        except Exception:
            # A fault of ours must not take the other sessions down.
            log.exception("%s: session crashed", session.name)
            session.fail()
        finally:
            del self._runs[entry]
            self._context.permits.discard(entry)
            if session.fenced_reason == INTERNAL_ERROR:
                self._schedule_retry(session.ownership)
            else:
                self._context.retries.discard(entry)
            run.over.set()
        if session.fenced_reason == VERDICT_MISSING:
            with self._context.supervisor.isolate("session"):
                await self.restore_entry_once(session)

    def _schedule_retry(self, ownership: Ownership) -> None:
        self._context.stats.internal_errors["session"] += 1
        pause_s = self._context.retries.record(ownership, time.monotonic())
        log.warning("%s: tried again in %g s", ownership.name, pause_s)

    async def restore_entry_once(self, session: Session) -> None:
        """Put back, once, the entry of a session that Redis lost: it goes on, or starts afresh."""
        if session.entry_restored:
            return
        session.entry_restored = True
        vanished = False
        try:
            vanished = await self.restore_entry(session.ownership)
        finally:
            session.entry_restored = vanished

    async def restore_entry(self, ownership: Ownership) -> bool:
        """Put the entry of a session back, if Redis lost it; return whether it had.

        Not that of a session which another claimed meanwhile, by the entry it was given then.
        """
        health, intake = self._context.health, self._context.ownership
        if not await retry_while_unavailable(health, partial(intake.is_ours, ownership)):
            return False
        after = await retry_while_unavailable(health, intake.last_entry)
        vanished = await retry_while_unavailable(
            health, partial(intake.restore_entry, ownership, after)
        )
        if vanished:
            log.warning("%s: Redis lost its entry; put back", ownership.name)
        return vanished

    async def cancel_and_wait(self, entry: str) -> None:
        """Stop running a session and wait until it has stopped."""
        if run := self._runs.get(entry):
            run.scope.cancel()
            await run.over.wait()

    def cancel(self, entry: str) -> None:
        """Stop running a session that is not ours any more; publish nothing."""
        run = self._runs.get(entry)
        if run is not None and not run.scope.cancel_called:
            session = run.session
            log.info(
                "%s: let go (%s)", session.name, session.fenced_reason or "another worker has it"
            )
            run.scope.cancel()

    async def release(self, session: Session) -> None:
        """Stop running a session and let any worker take it at once.

        One that is over, but for being crossed off, is let end: nobody else would have to do
        with it but to find that out.
        """
        began = time.time()
        fence = session.ownership.fence
        run = self._runs.get(fence.entry_id)
        if run is not None and session.phase is Phase.OVER:
            with anyio.move_on_after(RELEASE_TIMEOUT_S):
                await run.over.wait()
                return
        await self.cancel_and_wait(fence.entry_id)
        try:
            with anyio.move_on_after(RELEASE_TIMEOUT_S):
                await session.wait_committed()
                release = partial(
                    self._context.ownership.release, [(fence.entry_id, fence.delivery_count)]
                )
                if not await retry_while_unavailable(self._context.health, release):
                    await self.restore_entry_once(session)  # unless it is another's by now
                session.trace.released(fence.entry_id, began)
                log.info("%s: given back", session.name)
        except FencedError as refusal:
            log.info("%s: not given back (%s)", session.name, refusal)

    async def release_waiting(self) -> None:
        """Let any worker take the sessions that wait to be tried again."""
        held = self._context.retries.waiting
        pairs = [(each.fence.entry_id, each.fence.delivery_count) for each in held]
        if held:
            with anyio.move_on_after(RELEASE_TIMEOUT_S):
                given = await retry_while_unavailable(
                    self._context.health, lambda: self._context.ownership.release(pairs)
                )
                for ownership in held if given < len(held) else ():
                    await self.restore_entry(ownership)
