"""Keepalive of a socket: whether the provider takes bytes and answers, and what it has received."""

from typing import Protocol

PING_INTERVAL_S = 5.0
"""Between pings, and for the answer to one: a half-open socket is known within twice that."""

IDLE_PING_INTERVAL_S = 2.5
"""Between pings while no turn is open: silence that the service heard need not be replayed."""

MAX_PONG_DELAY_S = 1.0
"""An answer later than that says nothing of when the service heard the audio before the ping."""

SEND_TIMEOUT_S = 5.0
"""How long the peer may take no bytes."""


class PingableSocket(Protocol):
    """A socket that pings can be sent on."""

    blocked_since: float | None
    """When the peer last stopped to take bytes; None while it takes them."""
    last_received_at: float

    @property
    def pongs_received(self) -> int:
        """Number of the last ping that was answered."""
        ...

    def send_ping(self, number: int) -> None:
        """Send a ping with this number."""
        ...

    def abort(self, reason: str) -> None:
        """Close the connection at once."""
        ...


class Keepalive:
    """Pings one socket, and drops it when it is dead."""

    def __init__(self, now: float) -> None:
        self._number = 0
        self._sent_at = now
        self._session_bytes = 0
        self._answered = True

    def check(self, socket: PingableSocket, now: float, fed: int, every_s: float) -> int | None:
        """Look after the socket; `fed` is the session byte sent up to now.

        `every_s` is the time between pings.

        Returns the session byte up to which the service has certainly heard, once per answer.
        """
        if socket.blocked_since is not None and now - socket.blocked_since > SEND_TIMEOUT_S:
            socket.abort(f"the service took no audio for {SEND_TIMEOUT_S:g} s")
        if socket.pongs_received < self._number:
            # A busy service may answer late; one that says anything at all is not gone.
            if now - max(self._sent_at, socket.last_received_at) > PING_INTERVAL_S:
                socket.abort(f"no answer to a ping for {PING_INTERVAL_S:g} s")
            return None
        if not self._answered:
            self._answered = True
            return self._session_bytes if now - self._sent_at < MAX_PONG_DELAY_S else None
        if now - self._sent_at >= every_s:
            self._number += 1
            self._sent_at, self._session_bytes, self._answered = now, fed, False
            socket.send_ping(self._number)
        return None
