"""Shortage: this machine has no descriptor, memory, port or thread left for a session's socket.

Neither the provider nor a session causes a shortage, and other workers may have resources left.
A worker with a shortage claims no session and releases those that wait for a socket. After the
shortage it claims one session first, and the others once that one is connected.
"""

import logging
import socket
from typing import Final

from worker.core.provider_errors import Backoff
from worker.descriptors import session_socket
from worker.errors import SttShortageError

log = logging.getLogger(__name__)

TRIAL_S: Final = 10.0
"""Timeout for a trial session to connect, after which the worker claims another one."""

_PROBE: Final = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))


class Shortage:
    """Whether this worker can open sockets; times are on the monotonic clock."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """The missing resource; None while sockets can be opened, as far as is known."""
        self._since = 0.0
        self._next_check = 0.0
        self._failures = 0
        self._on_trial = False
        self._trial_until = float("-inf")
        self._backoff = Backoff(first_s=1.0, ceiling_s=30.0)

    def record(self, error: SttShortageError, now: float) -> None:
        """Record a socket that could not be opened."""
        self._failures += 1
        if self.reason is None:
            if not self._on_trial:
                self._since = now
                log.error("%s; claiming no session, releasing those without a socket", error)
            self._next_check = now + max(1.0, self._backoff.next_s())
        self.reason = str(error)

    def look(self, now: float) -> None:
        """Check whether sockets can be opened again. Call it at short intervals."""
        if self.reason is None or now < self._next_check:
            return
        try:
            session_socket(_PROBE).close()
        except OSError:
            self._next_check = now + max(1.0, self._backoff.next_s())
            return
        self.reason = None
        self._on_trial = True
        self._trial_until = float("-inf")

    def connected(self, now: float) -> None:
        """Record a socket that was opened."""
        if self._on_trial:
            self._on_trial = False
            self._backoff.reset()
            log.warning(
                "sockets can be opened again after %.1f s (%d attempts failed)",
                now - self._since,
                self._failures,
            )
            self._failures = 0

    def room(self, room: int, now: float) -> int:
        """Return how many sessions to claim if the worker has room for `room`.

        The returned sessions count as claimed.
        """
        if not self._on_trial or room <= 0:
            return room
        if now < self._trial_until:
            return 0
        self._trial_until = now + TRIAL_S
        return 1
