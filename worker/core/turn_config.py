"""The turn settings of one session over its audio, rewound and settled as the audio is."""

from collections import deque

from schemas.audio import TurnConfig
from schemas.validation import EntryError
from worker.core import stream_ids


class TurnConfigHistory:
    """The settings in force, and those that were at the committed position.

    Entries beyond that position are read again by a new socket or owner, and their settings with
    them; so they have to be judged against the same settings as the first time.
    """

    def __init__(self, settled: TurnConfig) -> None:
        self.committed = settled
        """In force at the committed position."""
        self.current = settled
        """In force for the audio read last."""
        self._since: deque[tuple[str, TurnConfig]] = deque()
        self._withdrawn = stream_ids.START  # up to that entry

    def apply(self, entry_id: str, config: TurnConfig) -> None:
        """Lay the settings of an entry over those in force.

        Raises `EntryFault` if the thresholds would not fall any more, or the settings were
        withdrawn; nothing changes then.
        """
        if stream_ids.order(entry_id) <= stream_ids.order(self._withdrawn):
            raise EntryError("config", "is refused by the service")
        merged = self.current.merged(config)
        merged.check_order()
        self.current = merged
        self._since.append((entry_id, config))

    def reset_to(self, config: TurnConfig) -> None:
        """Settle for these: the service does not take those at the committed position."""
        self.committed = self.current = config
        for _, newer in self._since:
            self.current = self.current.merged(newer)

    def revoke(self, config: TurnConfig) -> bool:
        """Settle for these for good: a replay does not bring those of entries read so far again.

        Returns whether that changes anything.
        """
        if not self._since and self.committed == config:
            return False
        if self._since:
            self._withdrawn = self._since[-1][0]
            self._since.clear()
        self.committed = self.current = config
        return True

    def committed_before(self, entry_id: str) -> TurnConfig:
        """Return the settings as of that entry, all before it being committed."""
        while self._since and stream_ids.order(self._since[0][0]) < stream_ids.order(entry_id):
            self.committed = self.committed.merged(self._since.popleft()[1])
        return self.committed

    def rewind(self, entry_id: str) -> None:
        """Go back to the settings as of that entry, all before it being committed."""
        self.current = self.committed_before(entry_id)
        self._since.clear()
