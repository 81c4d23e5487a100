"""What was sent on one socket, and when: for events that say what was heard, and not when."""

from array import array
from bisect import bisect_right
from typing import NamedTuple

MAX_SAMPLES = 100
RESOLUTION_S = 0.03
"""How finely it is remembered: a few seconds in all."""


class SendPosition(NamedTuple):
    """How far one socket was at some time."""

    at: float
    """On the monotonic clock."""
    socket_bytes: int
    """Bytes sent on this socket, filler included."""
    session_bytes: int
    """Bytes of the session sent on this socket, counted from the session's first."""


class SendLog:
    """Remembers the last few seconds of one socket."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, fed: int) -> None:
        """Begin on a new socket, at that byte of the session."""
        self._at = array("d")
        self._sent = array("q")
        self._fed = array("q")
        self._forgotten = SendPosition(float("-inf"), 0, fed)  # the last of that

    def add(self, now: float, sent: int, fed: int) -> None:
        """Note that so much was sent by now."""
        at = self._at
        if at and now - at[-1] < RESOLUTION_S:
            self._sent[-1] = sent
            self._fed[-1] = fed
            return
        at.append(now)
        self._sent.append(sent)
        self._fed.append(fed)
        if len(at) > 2 * MAX_SAMPLES:
            self._forgotten = self._moment(at[MAX_SAMPLES - 1], MAX_SAMPLES - 1)
            del at[:MAX_SAMPLES], self._sent[:MAX_SAMPLES], self._fed[:MAX_SAMPLES]

    def sent_at(self, sent: int) -> float | None:
        """Return when byte `sent` of this socket went out; None if that is forgotten."""
        if not self._at or sent < self._forgotten.socket_bytes:
            return None
        return self._at[min(bisect_right(self._sent, sent), len(self._at) - 1)]

    def moment(self, at: float) -> SendPosition:
        """Say how far this socket was at that time, a little while ago at most."""
        after = bisect_right(self._at, at)
        return self._moment(at, after - 1) if after else self._forgotten._replace(at=at)

    def _moment(self, at: float, index: int) -> SendPosition:
        return SendPosition(at, self._sent[index], self._fed[index])
