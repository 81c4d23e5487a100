"""Live sessions that this worker cannot serve, and leaves to the other workers.

The workers of a fleet may have different providers, for example while a change of the settings is
rolled out. A worker that takes a session over and has none of its providers releases it again. If
no worker has one, the session is declined again and again. Once its producer has appended nothing
for the idle timeout, the worker ends it.
"""

from typing import NamedTuple

DECLINED_S = 60.0
"""Maximum time for which a worker does not take the same entry over again."""

MAX_DECLINED = 1_000
"""Maximum number of entries that are remembered. Each look for released sessions names them."""


class _Declined(NamedTuple):
    until: float
    """Until when the entry is not taken over again."""
    last_audio: str
    """Id of the last entry of the session's audio."""
    silent_since: float
    """When that was first seen to be the last."""


class DeclinedSessions:
    """Entries that this worker has released because it cannot serve them.

    Times are on the monotonic clock.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Declined] = {}  # the longest ago declined first

    def add(self, entry_id: str, last_audio: str, now: float, wait_s: float = DECLINED_S) -> None:
        """Remember an entry, and leave it to other workers for `wait_s`."""
        since = self.silent_since(entry_id, last_audio, now)
        self._entries.pop(entry_id, None)
        self._entries[entry_id] = _Declined(now + wait_s, last_audio, since)
        if len(self._entries) > MAX_DECLINED:
            del self._entries[next(iter(self._entries))]

    def silent_since(self, entry_id: str, last_audio: str, now: float) -> float:
        """Return since when this worker knows that the audio of the session does not grow.

        `last_audio` is the id of its last entry now.
        """
        known = self._entries.get(entry_id)
        return known.silent_since if known and known.last_audio == last_audio else now

    def discard(self, entry_id: str) -> None:
        """Forget a session that has ended."""
        self._entries.pop(entry_id, None)

    def current(self, now: float) -> list[str]:
        """Return the ids of the entries not to take over now."""
        return [entry_id for entry_id, entry in self._entries.items() if entry.until > now]
