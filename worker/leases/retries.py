"""Crashes: sessions that a fault of ours stopped, and when each is tried again.

A fault that strikes once costs a pause. One that strikes each time would go on for ever, so that
a session which keeps crashing and gets no further is ended.
"""

import msgspec

from worker.bus.ownership import Ownership

MAX_CRASHES = 5
"""Crashes at one place after which the session is ended."""

FIRST_DELAY_S = 1.0
"""Pause after the first crash; it doubles with each further one."""


class _Record(msgspec.Struct):
    """What is known of one session that crashed."""

    ownership: Ownership
    times: int = 0
    due: float | None = None
    """When it is tried again, on the monotonic clock; None while it is being tried."""
    committed_bytes: int = 0
    """Bytes of its audio that were committed when it was last tried."""


class CrashRetries:
    """Sessions that crashed in this process and are its own still."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    @property
    def waiting(self) -> list[Ownership]:
        """The sessions that wait to be tried again; their leases are kept meanwhile."""
        return [record.ownership for record in self._records.values() if record.due is not None]

    def get(self, entry: str) -> Ownership | None:
        """Return the session that waits to be tried again under this entry."""
        record = self._records.get(entry)
        return record.ownership if record and record.due is not None else None

    def record(self, ownership: Ownership, now: float) -> float:
        """Count a crash and return the seconds until the session is tried again."""
        record = self._records.setdefault(ownership.fence.entry_id, _Record(ownership))
        record.ownership = ownership
        record.times += 1
        pause_s = FIRST_DELAY_S * 2 ** (record.times - 1) if record.times < MAX_CRASHES else 0.0
        record.due = now + pause_s
        return pause_s

    def due(self, now: float) -> list[Ownership]:
        """Return the sessions whose time has come, each once."""
        ready = [
            record
            for record in self._records.values()
            if record.due is not None and record.due <= now
        ]
        for record in ready:
            record.due = None
        return [record.ownership for record in ready]

    def is_exhausted(self, entry: str, settled: int) -> bool:
        """Say whether a session that is claimed with so much committed is not worth a try."""
        record = self._records.get(entry)
        if record is None:
            return False
        if settled > record.committed_bytes:
            record.committed_bytes, record.times = settled, 1
        return record.times >= MAX_CRASHES

    def discard(self, entry: str) -> None:
        """Forget a session that is over, or another's."""
        self._records.pop(entry, None)
