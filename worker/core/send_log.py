"""Records what was sent on one socket, and when, because the provider sends no timestamps."""

from array import array
from bisect import bisect_right
from typing import NamedTuple

MIN_SAMPLES = 100
"""Minimum number of samples kept."""

MAX_SAMPLES = 125
"""Maximum number of samples kept, at 24 bytes each."""

RESOLUTION_S = 0.03
"""Minimum interval between samples; the log spans a few seconds."""


class SendPosition(NamedTuple):
    """How much was sent on one socket at some time."""

    at: float
    """Time on the monotonic clock."""
    socket_bytes: int
    """Bytes sent on this socket, filler included."""
    session_bytes: int
    """Bytes of the session sent on this socket, counted from the session's first."""


class SendLog:
    """Log of the last few seconds of one socket."""

    __slots__ = (
        "_at",
        "_forgotten",
        "_sent",
        "_session_bytes",
    )

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, session_bytes: int) -> None:
        """Start on a new socket, at session byte `session_bytes`."""
        self._at = array("d")
        self._sent = array("q")
        self._session_bytes = array("q")
        self._forgotten = SendPosition(
            float("-inf"), 0, session_bytes
        )  # the last position that was dropped

    def add(self, now: float, sent: int, session_bytes: int) -> None:
        """Record the bytes sent up to now."""
        at = self._at
        if at and now - at[-1] < RESOLUTION_S:
            self._sent[-1] = sent
            self._session_bytes[-1] = session_bytes
            return
        at.append(now)
        self._sent.append(sent)
        self._session_bytes.append(session_bytes)
        over = len(at) - MIN_SAMPLES
        if len(at) > MAX_SAMPLES:
            self._forgotten = self._moment(at[over - 1], over - 1)
            del at[:over], self._sent[:over], self._session_bytes[:over]

    def sent_at(self, sent: int) -> float | None:
        """Return when byte `sent` of this socket was sent; None if it is no longer known."""
        if not self._at or sent < self._forgotten.socket_bytes:
            return None
        return self._at[min(bisect_right(self._sent, sent), len(self._at) - 1)]

    def moment(self, at: float) -> SendPosition:
        """Return how much was sent at a time in the last few seconds."""
        if self._at and at >= self._at[-1]:  # the usual case, which touches the arrays' ends only
            return self._moment(at, -1)
        after = bisect_right(self._at, at)
        return self._moment(at, after - 1) if after else self._forgotten._replace(at=at)

    def _moment(self, at: float, index: int) -> SendPosition:
        return SendPosition(at, self._sent[index], self._session_bytes[index])
