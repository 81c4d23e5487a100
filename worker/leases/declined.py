"""Live sessions that this worker cannot serve, and leaves to the other workers.

The workers of a fleet may have different providers, for example while a change of the settings is
rolled out. A worker that takes a session over and has none of its providers releases it again.
"""

DECLINED_S = 60.0
"""Time for which a worker does not take the same entry over again."""

MAX_DECLINED = 1_000
"""Maximum number of entries that are remembered. Each look for released sessions names them."""


class DeclinedSessions:
    """Entries that this worker has released because it cannot serve them.

    Times are on the monotonic clock.
    """

    def __init__(self) -> None:
        self._until: dict[str, float] = {}  # the earliest first

    def add(self, entry_id: str, now: float) -> None:
        """Remember an entry."""
        self._until.pop(entry_id, None)
        self._until[entry_id] = now + DECLINED_S
        if len(self._until) > MAX_DECLINED:
            del self._until[next(iter(self._until))]

    def current(self, now: float) -> list[str]:
        """Return the ids of the entries not to take over now."""
        over = [entry_id for entry_id, until in self._until.items() if until <= now]
        for entry_id in over:
            del self._until[entry_id]
        return [*self._until]
