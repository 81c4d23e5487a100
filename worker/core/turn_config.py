"""The turn settings of one session, rewound and committed together with its audio."""

from schemas.audio import TurnConfig
from schemas.validation import EntryError
from worker.core import stream_ids


class TurnConfigHistory:
    """The current settings, and those at the committed position.

    A new socket or owner reads entries after that position again, together with their settings. So
    they must be validated against the same settings as the first time.
    """

    __slots__ = (
        "_revoked_to",
        "_since",
        "committed",
        "current",
    )

    def __init__(self, committed: TurnConfig) -> None:
        self.committed = committed
        """Settings at the committed position."""
        self.current = committed
        """Settings at the last audio read."""
        self._since: list[tuple[str, TurnConfig]] = []  # mostly empty, as a deque 760 bytes
        self._revoked_to = stream_ids.START  # settings of entries up to this id are revoked

    def apply(self, entry_id: str, config: TurnConfig) -> None:
        """Merge the settings of an entry into the current ones.

        Raises `EntryError`, without a change, if the thresholds would be out of order or the
        settings were revoked.
        """
        if stream_ids.order(entry_id) <= stream_ids.order(self._revoked_to):
            raise EntryError("config", "is rejected by the provider")
        merged = self.current.merged(config)
        merged.check_order()
        self.current = merged
        self._since.append((entry_id, config))

    def reset_to(self, config: TurnConfig) -> None:
        """Replace the committed settings, which the provider rejects."""
        self.committed = self.current = config
        for _, newer in self._since:
            self.current = self.current.merged(newer)

    def revoke(self, config: TurnConfig) -> bool:
        """Replace all settings for good: a replay does not apply those of earlier entries again.

        Returns whether this changes anything.
        """
        if not self._since and self.committed == config:
            return False
        if self._since:
            self._revoked_to = self._since[-1][0]
            self._since.clear()
        self.committed = self.current = config
        return True

    def committed_before(self, entry_id: str) -> TurnConfig:
        """Return the settings before that entry, once all entries before it are committed."""
        while self._since and stream_ids.order(self._since[0][0]) < stream_ids.order(entry_id):
            self.committed = self.committed.merged(self._since.pop(0)[1])
        return self.committed

    def rewind(self, entry_id: str) -> None:
        """Go back to the settings before that entry, once all entries before it are committed."""
        self.current = self.committed_before(entry_id)
        self._since.clear()
