"""The roster: the sessions this worker runs, each in a cancel scope of its own."""

import logging
from collections.abc import Iterator
from functools import partial

import anyio
from anyio.abc import TaskGroup

from worker.bus.connection import patiently
from worker.errors import CommitRefused
from worker.host import Host
from worker.session import Session

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
        """(entry, delivery count) of every session."""
        return [(entry, run.session.ownership.fence.count) for entry, run in self._runs.items()]

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
                log.info("%s: session ended", session.ownership.session.session)
        except CommitRefused as refusal:
            self._host.stats.fenced += 1
            log.info("%s: let go (%s)", session.ownership.session.session, refusal)
        except Exception:
            # A fault of ours must not take the other sessions down. The lease of this one runs
            # out, and the next owner goes on from what is committed.
            log.exception("%s: session crashed", session.ownership.session.session)
        finally:
            del self._runs[entry]
            run.over.set()
        if session.refused == STATE_LOST:
            await self.announce_again(session)

    async def announce_again(self, session: Session) -> None:
        """Put back, once, the entry of a session that Redis lost: it goes on, or starts afresh."""
        if session.announced_again:
            return
        session.announced_again = True
        ownership = session.ownership
        log.warning("%s: Redis lost its entry; put back", ownership.session.session)
        again = partial(self._host.intake.announce_again, ownership.fields, ownership.run)
        await patiently(self._host.health, again)

    def drop(self, entry: str) -> None:
        """Stop running a session that is not ours any more; publish nothing."""
        if run := self._runs.get(entry):
            run.scope.cancel()

    async def give_back(self, session: Session) -> None:
        """Stop running a session and let any worker take it at once."""
        fence = session.ownership.fence
        run = self._runs.get(fence.entry)
        if run is None:
            return
        run.scope.cancel()
        await run.over.wait()
        try:
            with anyio.move_on_after(GIVE_BACK_GRACE_S):
                await session.settle()
                release = partial(self._host.intake.release, [(fence.entry, fence.count)])
                await patiently(self._host.health, release)
        except CommitRefused as refusal:
            log.info("%s: taken meanwhile (%s)", session.ownership.session.session, refusal)
