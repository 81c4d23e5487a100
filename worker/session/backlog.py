"""The backlog: drains sessions whose audio waits for pacing or for a slow provider."""

import logging
import time
from typing import Protocol

import anyio

from worker.telemetry.logs import SessionName

log = logging.getLogger(__name__)

DRAIN_INTERVAL_S = 0.02
"""Interval between two drains of one session."""


class Drainable(Protocol):
    """A session with unsent audio."""

    @property
    def name(self) -> SessionName:
        """Session name for log lines."""
        ...

    @property
    def catching_up(self) -> bool:
        """Whether the session has unsent audio and an open socket."""
        ...

    def drain(self, now: float) -> None:
        """Send what pacing allows."""
        ...

    def fail(self) -> None:
        """Stop after an internal error."""
        ...


class BacklogDrainer:
    """Drains the sessions that are behind; sessions that are up to date cost nothing."""

    def __init__(self) -> None:
        self._behind: dict[Drainable, None] = {}
        self._wake = anyio.Event()

    def add(self, session: Drainable) -> None:
        """Drain `session` until it has caught up."""
        self._behind[session] = None
        self._wake.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            while self._behind:
                now = time.monotonic()
                for session in list(self._behind):
                    if not self._step(session, now):
                        del self._behind[session]
                await anyio.sleep(DRAIN_INTERVAL_S)
            await self._wake.wait()
            self._wake = anyio.Event()

    def _step(self, session: Drainable, now: float) -> bool:
        try:
            session.drain(now)
        except Exception:  # an internal error must not stop the other sessions
            log.exception("%s: internal error while catching up, stopping", session.name)
            session.fail()
            return False
        return session.catching_up
