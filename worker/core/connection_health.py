"""Failures of a session's sockets: dead sockets, stuck turns, repeated losses at the same audio.

`Keepalive` also shows what audio the provider has received. Times are seconds on one monotonic
clock.
"""

from enum import Enum
from typing import Protocol

PING_INTERVAL_S = 5.0
"""Interval between pings and timeout of a pong: a half-open socket is detected in twice this."""

IDLE_PING_INTERVAL_S = 2.5
"""Interval between pings while no turn is open. Silence that the provider received is committed."""

MAX_PONG_DELAY_S = 1.0
"""Maximum delay of a pong that proves that the provider received the audio before the ping."""

SEND_TIMEOUT_S = 5.0
"""Timeout for a blocked send."""

MAX_TIMEOUT_MS = 11_200.0
"""Maximum end timeout that the provider accepts."""

MARGIN_MS = 8_000.0
"""Maximum lag of the provider behind its own timeout, with a margin."""

MAX_SILENT_MS = 30_000.0
"""Maximum audio without a message that a socket gets after several that were found silent."""

MIN_PUNCTUAL_MS = 30_000.0
"""Audio of one socket without a late message after which its provider counts as on time again."""

MAX_CERTAIN_LOSSES = 3
"""Maximum losses at the same place, if the provider certainly caused each."""

MAX_LOSSES = 5
"""Maximum losses at the same place, if the cause is uncertain."""

MIN_LOSING_S = 60.0
"""Minimum time from the first to the last uncertain loss: an outage looks the same, but passes."""


class PingableSocket(Protocol):
    """A socket that pings can be sent on."""

    blocked_since: float | None
    """When the peer last stopped to take bytes; None while it takes them."""
    last_received_at: float
    pongs_received: int
    """Number of the last ping that was answered."""

    def send_ping(self, number: int) -> None:
        """Send a ping with this number."""
        ...

    def abort(self, reason: str) -> None:
        """Close the connection at once."""
        ...


class Keepalive:
    """Pings one socket, and aborts it if it is dead."""

    __slots__ = (
        "_answered",
        "_number",
        "_patience_s",
        "_sent_at",
        "_session_bytes",
        "silent_since",
    )

    def __init__(self, now: float, patience_s: float = PING_INTERVAL_S) -> None:
        """`patience_s` is the timeout of a pong."""
        self._patience_s = patience_s
        self.silent_since: float | None = None
        """When the socket was last known to work, once it is aborted because it is silent."""
        self._number = 0
        self._sent_at = now
        self._session_bytes = 0
        self._answered = True

    def check(self, socket: PingableSocket, now: float, sent: int, every_s: float) -> int | None:
        """Check the socket; `sent` is the session byte up to which audio was sent.

        `every_s` is the interval between pings. Returns the session byte up to which the provider
        certainly received, once per pong.
        """
        if socket.blocked_since is not None and now - socket.blocked_since > SEND_TIMEOUT_S:
            socket.abort(f"the provider read no audio for {SEND_TIMEOUT_S:g} s")
        if socket.pongs_received < self._number:
            # A busy provider may answer late; any message shows that it is alive.
            since = max(self._sent_at, socket.last_received_at)
            if now - since > self._patience_s:
                self.silent_since = since
                socket.abort(f"no answer to a ping for {self._patience_s:g} s")
            return None
        if not self._answered:
            self._answered = True
            return self._session_bytes if now - self._sent_at < MAX_PONG_DELAY_S else None
        if now - self._sent_at >= every_s:
            self._number += 1
            self._sent_at, self._session_bytes, self._answered = now, sent, False
            socket.send_ping(self._number)
        return None


class WatchdogAction(Enum):
    """What to do about the open turn."""

    NONE = "nothing to do"
    REPLAY = "replaying it on a new socket"
    END = "ending it (a replay did not help)"


class Watchdog:
    """Detects an open turn that neither grows nor ends, although audio, or filler, is sent.

    The provider's clock is the audio, so the limit is measured in audio. Its silence timeout ends
    any turn, so a turn without a message for longer is stuck.
    """

    __slots__ = (
        "_replayed",
        "message_at_ms",
    )

    def __init__(self) -> None:
        self.message_at_ms = 0.0
        """How much audio was sent when the last message arrived."""
        self._replayed: int | None = None

    def restart(self) -> None:
        """Start on a new socket, whose audio counts from 0."""
        self.message_at_ms = 0.0

    def on_message(self, sent_ms: float) -> None:
        """Record a message that arrived after `sent_ms` of audio."""
        self.message_at_ms = sent_ms

    def silent_ms(self, sent_ms: float) -> float:
        """Return how much audio was sent since the last message."""
        return sent_ms - self.message_at_ms

    def is_due(self, sent_ms: float) -> bool:
        """Return whether `check` could find anything, whatever the end timeout is."""
        return sent_ms - self.message_at_ms > MARGIN_MS

    def check(self, turn: int, sent_ms: float, timeout_ms: float | None) -> WatchdogAction:
        """Return what to do about the open turn with this number and end timeout."""
        patience_ms = (timeout_ms or MAX_TIMEOUT_MS) + MARGIN_MS
        if sent_ms - self.message_at_ms <= patience_ms:
            return WatchdogAction.NONE
        if self._replayed == turn:
            return WatchdogAction.END
        self._replayed = turn
        return WatchdogAction.REPLAY


class SilentSocket:
    """Detects a socket on which audio is sent, and nothing is received, by the audio sent.

    It is for a provider that sends messages also in silence. A socket that was found silent may
    have been late, so each socket after it gets twice as much audio, also if the session was at
    another provider meanwhile. That lasts until the provider was on time for a while, and no turn
    is open. Otherwise a late provider would lose each socket before it commits anything.
    """

    __slots__ = ("_doublings", "_late_ms", "_limit_ms")

    def __init__(self) -> None:
        self._limit_ms = 0.0
        self._doublings = 0
        self._late_ms = 0.0  # audio of this socket at its last late message

    def restart(self, limit_ms: float) -> None:
        """Start on a new socket; `limit_ms` is its provider's limit, 0 if it has none."""
        self._limit_ms = limit_ms
        self._late_ms = 0.0

    def on_message(self, silent_ms: float, sent_ms: float, *, inside_turn: bool) -> None:
        """Record a message that arrived after `sent_ms` of audio, `silent_ms` after the last."""
        if not self._limit_ms:
            return  # silence of this provider shows nothing
        if silent_ms > self._limit_ms:
            self._late_ms = sent_ms
        elif not inside_turn and sent_ms - self._late_ms >= MIN_PUNCTUAL_MS:
            self._doublings = 0

    def check(self, silent_ms: float) -> bool:
        """Return whether the socket is stuck after `silent_ms` of audio without a message."""
        allowed_ms = min(self._limit_ms * 2.0**self._doublings, MAX_SILENT_MS)
        if not 0 < allowed_ms < silent_ms:
            return False
        if allowed_ms < MAX_SILENT_MS:
            self._doublings += 1
        return True


class RepeatedLosses:
    """Counts sockets of one session that were lost at the same place, without any progress."""

    __slots__ = (
        "_certain",
        "_count",
        "_near",
        "_place",
        "_progress",
        "_since",
    )

    def __init__(self, near: int) -> None:
        """`near` is the distance in bytes within which two places count as the same."""
        self._near = near
        self._progress: object = None
        self._place = 0
        self._count = 0
        self._certain = 0
        self._since = 0.0

    def must_skip(self, place: int, progress: object, now: float, *, certain: bool) -> bool:
        """Record a lost socket; return whether the session must skip this audio.

        `place` is the session byte up to which audio was sent on the socket. `progress` is a value
        that changes whenever the session makes progress. `certain` is whether the provider
        certainly caused the loss.
        """
        if progress != self._progress or place > self._place + self._near:
            self._progress, self._place, self._since = progress, place, now
            self._count = self._certain = 0
        elif place < self._place - self._near:
            return False  # lost earlier in the audio, so for another reason
        self._count += 1
        self._certain += certain
        lasting = self._count >= MAX_LOSSES and now - self._since >= MIN_LOSING_S
        return self._certain >= MAX_CERTAIN_LOSSES or lasting
