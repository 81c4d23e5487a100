"""The turn settings of one session over its audio, rewound and settled as the audio is."""

from collections import deque

from schemas.audio import TurnConfig
from schemas.faults import EntryFault
from worker.core import ids


class Configs:
    """The settings in force, and those that were at the committed position.

    Entries beyond that position are read again by a new socket or owner, and their settings with
    them; so they have to be judged against the same settings as the first time.
    """

    def __init__(self, settled: TurnConfig) -> None:
        self.settled = settled
        """In force at the committed position."""
        self.current = settled
        """In force for the audio read last."""
        self._since: deque[tuple[str, TurnConfig]] = deque()
        self._withdrawn = ids.START  # up to that entry

    def accept(self, entry_id: str, config: TurnConfig) -> None:
        """Lay the settings of an entry over those in force.

        Raises `EntryFault` if the thresholds would not fall any more, or the settings were
        withdrawn; nothing changes then.
        """
        if ids.order(entry_id) <= ids.order(self._withdrawn):
            raise EntryFault("config", "is refused by the service")
        merged = self.current.merged(config)
        merged.check_order()
        self.current = merged
        self._since.append((entry_id, config))

    def fall_back(self, config: TurnConfig) -> None:
        """Settle for these: the service does not take those at the committed position."""
        self.settled = self.current = config
        for _, newer in self._since:
            self.current = self.current.merged(newer)

    def withdraw(self, config: TurnConfig) -> bool:
        """Settle for these for good: a replay does not bring those of entries read so far again.

        Returns whether that changes anything.
        """
        if not self._since and self.settled == config:
            return False
        if self._since:
            self._withdrawn = self._since[-1][0]
            self._since.clear()
        self.settled = self.current = config
        return True

    def settled_before(self, entry_id: str) -> TurnConfig:
        """Return the settings as of that entry, all before it being committed."""
        while self._since and ids.order(self._since[0][0]) < ids.order(entry_id):
            self.settled = self.settled.merged(self._since.popleft()[1])
        return self.settled

    def rewind(self, entry_id: str) -> None:
        """Go back to the settings as of that entry, all before it being committed."""
        self.current = self.settled_before(entry_id)
        self._since.clear()
