"""Repeated losses: a provider that fails at the same audio on one socket after another."""

MAX_CERTAIN_LOSSES = 3
"""Maximum losses at the same place, if the provider certainly caused each."""

MAX_LOSSES = 5
"""Maximum losses at the same place, if the cause is uncertain."""

MIN_LOSING_S = 60.0
"""Minimum time from the first to the last uncertain loss: an outage looks the same, but passes."""


class Repeats:
    """Counts sockets of one session that were lost at the same place, without any progress."""

    def __init__(self, near: int) -> None:
        """`near` is the distance in bytes within which two places count as the same."""
        self._near = near
        self._progress: object = None
        self._place = 0
        self._count = 0
        self._certain = 0
        self._since = 0.0

    def lost(self, place: int, progress: object, now: float, *, certain: bool) -> bool:
        """Record a lost socket; return whether the session must skip this audio.

        `place` is the session byte up to which audio was sent on the socket. `progress` is a value
        that changes whenever the session makes progress.
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
