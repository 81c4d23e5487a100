"""What was sent on one socket, and when: for events that say what was heard, and not when."""

from array import array
from bisect import bisect_right
from typing import NamedTuple

KEEP = 100
STEP_S = 0.03
"""How finely it is remembered: a few seconds in all."""


class Moment(NamedTuple):
    """How far one socket was at some time."""

    at: float
    """On the monotonic clock."""
    sent: int
    """Bytes sent on this socket, filler included."""
    fed: int
    """Bytes of the session sent on this socket, counted from the session's first."""


class SentLog:
    """Remembers the last few seconds of one socket."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, fed: int) -> None:
        """Begin on a new socket, at that byte of the session."""
        self._at = array("d")
        self._sent = array("q")
        self._fed = array("q")
        self._forgotten = Moment(float("-inf"), 0, fed)  # the last of that

    def note(self, now: float, sent: int, fed: int) -> None:
        """Note that so much was sent by now."""
        at = self._at
        if at and now - at[-1] < STEP_S:
            self._sent[-1] = sent
            self._fed[-1] = fed
            return
        at.append(now)
        self._sent.append(sent)
        self._fed.append(fed)
        if len(at) > 2 * KEEP:
            self._forgotten = self._moment(at[KEEP - 1], KEEP - 1)
            del at[:KEEP], self._sent[:KEEP], self._fed[:KEEP]

    def sent_at(self, sent: int) -> float | None:
        """Return when byte `sent` of this socket went out; None if that is forgotten."""
        if not self._at or sent < self._forgotten.sent:
            return None
        return self._at[min(bisect_right(self._sent, sent), len(self._at) - 1)]

    def moment(self, at: float) -> Moment:
        """Say how far this socket was at that time, a little while ago at most."""
        after = bisect_right(self._at, at)
        return self._moment(at, after - 1) if after else self._forgotten._replace(at=at)

    def _moment(self, at: float, index: int) -> Moment:
        return Moment(at, self._sent[index], self._fed[index])
