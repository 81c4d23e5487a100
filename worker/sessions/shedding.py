"""Shedding: audio that came too late to be worth transcribing is dropped, and said to be.

Only what a new socket would hear first is dropped, oldest first: nothing that was sent is taken
back, and nothing that follows audio that was kept.
"""

from worker.bus.clock import EntryAges
from worker.core.ledger import Ledger
from worker.sessions.uplink import Uplink


class Shedding:
    """Decides for one session; `max_lag_s` 0 keeps everything."""

    def __init__(self, max_lag_s: float, ages: EntryAges, ledger: Ledger, uplink: Uplink) -> None:
        self._max_lag_s = max_lag_s
        self._ages = ages
        self._ledger = ledger
        self._uplink = uplink
        self._size = 0
        self._tail = b""

    def is_late(self, entry_id: str | None) -> bool:
        """Say whether an entry is too old to be transcribed."""
        if not self._max_lag_s or entry_id is None:
            return False
        return self._ages.age_s(entry_id) > self._max_lag_s

    def drops(self, entry_id: str, audio: bytes) -> bool:
        """Say whether this audio, just taken in, is dropped."""
        kept_before = not self._uplink.empty or self._uplink.fed > self._ledger.committed_bytes
        if kept_before or not self.is_late(entry_id):
            return False
        self._size += len(audio)
        self._tail = (self._tail + audio)[-8:]
        return True

    def settle(self, position: int) -> float:
        """Cover what was dropped, up to session byte `position`; return its milliseconds.

        0 if nothing was. To be published in the same commit.
        """
        if not self._size:
            return 0.0
        ms = self._uplink.ms_of(self._size)
        self._ledger.commit_to(position)
        rest = position - self._ledger.committed_bytes  # the beginning of a sample
        self._uplink.skip(self._tail[len(self._tail) - rest :])
        self.forget()
        return ms

    def forget(self) -> None:
        """Begin again: all that is not committed will be read again."""
        self._size = 0
        self._tail = b""
