"""Lateness: how far sending lags behind the audio that arrived.

The length of a turn does not count. A new socket receives the open turn again, however long it is,
so only audio that was never sent on any socket can be late. Lateness is the age of the first such
audio, minus the time that replays took meanwhile.
"""

from worker.core.records import SentState


class Lateness:
    """Measures the lateness of one session; times are seconds on one monotonic clock."""

    __slots__ = (
        "_limit_s",
        "_replayed_s",
        "_replaying_since",
        "sent_until",
    )

    def __init__(self, limit_s: float, state: SentState) -> None:
        """`limit_s` is the maximum lateness; 0 is unlimited."""
        self._limit_s = limit_s
        self._replayed_s = state.replayed_s
        self._replaying_since: float | None = None
        self.sent_until = state.until
        """Session byte up to which audio was sent, as of the last call."""

    @property
    def delayed_by_replays(self) -> bool:
        """Whether replays delayed audio that was never sent."""
        return self._replayed_s > 0 or self._replaying_since is not None

    def opened(self, now: float, position: int) -> None:
        """Start on a new socket, at session byte `position`."""
        self._replaying_since = now if position < self.sent_until else None

    def progressed(self, now: float, position: int) -> None:
        """Record that the session was sent up to byte `position` on this socket."""
        if position >= self.sent_until:
            self.sent_until = position
            self._stop(now)

    def closed(self, now: float, position: int) -> None:
        """Record that this socket is closed, with the session sent up to byte `position`."""
        self.progressed(now, position)
        self._stop(now)

    def limit_replay_time(self, now: float, age_s: float) -> None:
        """Limit the time of replays to the age of audio that is now sent for the first time.

        Replays delayed it by at most its age.
        """
        if self._replaying_since is None:
            self._replayed_s = min(self._replayed_s, age_s)
        elif age_s < self._replays_s(now):
            self._replayed_s, self._replaying_since = age_s, now

    def is_late(self, now: float, age_s: float) -> bool:
        """Return whether never-sent audio of this age is too late to be transcribed."""
        return 0 < self._limit_s < age_s - self._replays_s(now)

    def state(self, now: float, position: int) -> SentState:
        """Return the state for the checkpoint, with the session sent up to byte `position`."""
        return SentState(max(position, self.sent_until), round(self._replays_s(now), 3))

    def _replays_s(self, now: float) -> float:
        running_s = 0.0 if self._replaying_since is None else now - self._replaying_since
        return self._replayed_s + running_s

    def _stop(self, now: float) -> None:
        self._replayed_s = self._replays_s(now)
        self._replaying_since = None
