"""What a session used of each provider: audio, sockets, and the time for which they were open."""

from collections.abc import Mapping

from schemas.turns import Usage


class UsageLog:
    """Counts the usage of one session over all its sockets; times are on one monotonic clock."""

    __slots__ = (
        "_began",
        "_bytes_per_s",
        "_closed",
        "_opened_at",
        "_provider",
        "_replay_until",
    )

    def __init__(self, bytes_per_s: float, closed: Mapping[str, Usage]) -> None:
        """Continue after `closed`, the usage as of the checkpoint."""
        self._bytes_per_s = bytes_per_s
        self._closed = dict(closed)
        self._provider = ""  # of the open socket; empty without one
        self._opened_at = 0.0
        self._began = 0
        self._replay_until = 0

    def opened(self, provider: str, now: float, position: int, sent_until: int) -> None:
        """Start on a new socket, at session byte `position`.

        Audio before byte `sent_until` was sent on an earlier socket.
        """
        self._provider, self._opened_at = provider, now
        self._began, self._replay_until = position, sent_until

    def state(
        self, now: float, position: int, sent_bytes: int, filler_bytes: int
    ) -> dict[str, Usage]:
        """Return the usage so far, with that of the open socket.

        `position` is the session byte up to which audio was sent on it. `sent_bytes` is all that
        was sent on it, of which `filler_bytes` are filler.
        """
        if not self._provider:
            return self._closed
        before = self._closed.get(self._provider, Usage())
        replayed = max(0, min(position, self._replay_until) - self._began)
        usage = Usage(
            audio_s=self._add(before.audio_s, sent_bytes - filler_bytes),
            replayed_s=self._add(before.replayed_s, replayed),
            filler_s=self._add(before.filler_s, filler_bytes),
            sockets=before.sockets + 1,
            socket_s=round(before.socket_s + now - self._opened_at, 3),
        )
        return {**self._closed, self._provider: usage}

    def closed(self, now: float, position: int, sent_bytes: int, filler_bytes: int) -> None:
        """Record that the socket, if any, is closed."""
        self._closed = self.state(now, position, sent_bytes, filler_bytes)
        self._provider = ""

    def _add(self, seconds: float, size: int) -> float:
        return round(seconds + size / self._bytes_per_s, 3)
