"""Catching up: sessions that hold audio which pacing, or a slow service, did not let go yet."""

import logging
import time
from typing import Protocol

import anyio

from worker.telemetry.logs import SessionName

log = logging.getLogger(__name__)

DRAIN_INTERVAL_S = 0.02
"""Between tries of one session."""


class Drainable(Protocol):
    """A session that holds audio."""

    @property
    def name(self) -> SessionName:
        """The session, as log lines name it."""
        ...

    @property
    def catching_up(self) -> bool:
        """Whether it still does, and has a socket to send it on."""
        ...

    def drain(self, now: float) -> None:
        """Send what may be sent."""
        ...

    def fail(self) -> None:
        """Stop, for a fault of ours struck."""
        ...


class BacklogDrainer:
    """Lets sessions send on; those that are up to date cost nothing."""

    def __init__(self) -> None:
        self._behind: dict[Drainable, None] = {}
        self._wake = anyio.Event()

    def add(self, session: Drainable) -> None:
        """Let `session` send on until it has caught up."""
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
        except Exception:  # a fault of ours must not take the other sessions down
            log.exception("%s: crashed as it caught up", session.name)
            session.fail()
            return False
        return session.catching_up
