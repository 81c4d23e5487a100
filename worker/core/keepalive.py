"""Keepalive of a socket: whether the provider reads and answers, and what it has received."""

from typing import Protocol

PING_INTERVAL_S = 5.0
"""Interval between pings and timeout of a pong: a half-open socket is detected in twice this."""

IDLE_PING_INTERVAL_S = 2.5
"""Interval between pings while no turn is open. Silence that the provider received is committed."""

MAX_PONG_DELAY_S = 1.0
"""Maximum delay of a pong that proves that the provider received the audio before the ping."""

SEND_TIMEOUT_S = 5.0
"""Timeout for a blocked send."""


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
    """Pings one socket, and aborts it if it is dead."""

    def __init__(self, now: float) -> None:
        self._number = 0
        self._sent_at = now
        self._session_bytes = 0
        self._answered = True

    def check(self, socket: PingableSocket, now: float, fed: int, every_s: float) -> int | None:
        """Check the socket; `fed` is the session byte up to which audio was sent.

        `every_s` is the interval between pings.

        Returns the session byte up to which the provider certainly received, once per pong.
        """
        if socket.blocked_since is not None and now - socket.blocked_since > SEND_TIMEOUT_S:
            socket.abort(f"the provider read no audio for {SEND_TIMEOUT_S:g} s")
        if socket.pongs_received < self._number:
            # A busy provider may answer late; any message shows that it is alive.
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
