"""Retries of sessions that crashed with an internal error.

A single crash costs a retry delay. A session that crashes repeatedly without progress is ended.
"""

import msgspec

from worker.bus.ownership import OwnedSession

MAX_CRASHES = 5
"""Maximum crashes at one position, after which the session is ended."""

FIRST_DELAY_S = 1.0
"""Delay before the first retry; it doubles with each further crash."""


class _Record(msgspec.Struct):
    """Crash history of one session."""

    ownership: OwnedSession
    times: int = 0
    due: float | None = None
    """Monotonic time of the next retry; None while a retry runs."""
    committed_bytes: int = 0
    """Bytes of audio that were committed at the last retry."""


class CrashRetries:
    """Sessions that crashed in this process and that it still owns."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    @property
    def waiting(self) -> list[OwnedSession]:
        """Sessions that wait for a retry; the worker keeps renewing their leases."""
        return [record.ownership for record in self._records.values() if record.due is not None]

    def get(self, entry_id: str) -> OwnedSession | None:
        """Return the session of this entry if it waits for a retry."""
        record = self._records.get(entry_id)
        return record.ownership if record and record.due is not None else None

    def record(self, ownership: OwnedSession, now: float) -> float:
        """Count a crash and return the delay before the retry, in seconds."""
        record = self._records.setdefault(ownership.fence.entry_id, _Record(ownership))
        record.ownership = ownership
        record.times += 1
        delay_s = FIRST_DELAY_S * 2 ** (record.times - 1) if record.times < MAX_CRASHES else 0.0
        record.due = now + delay_s
        return delay_s

    def take_due(self, now: float) -> list[OwnedSession]:
        """Return the sessions whose retry is due, each once: they no longer wait."""
        ready = []
        for record in self._records.values():
            if record.due is not None and record.due <= now:
                record.due = None
                ready.append(record.ownership)
        return ready

    def note_position(self, entry_id: str, committed_bytes: int) -> None:
        """Record where a session continues; after progress, only its last crash counts."""
        record = self._records.get(entry_id)
        if record is not None and committed_bytes > record.committed_bytes:
            record.committed_bytes, record.times = committed_bytes, 1

    def is_exhausted(self, entry_id: str) -> bool:
        """Return whether a session has used up its retries at its position."""
        record = self._records.get(entry_id)
        return record is not None and record.times >= MAX_CRASHES

    def discard(self, entry_id: str) -> None:
        """Forget a session that has ended or that another worker owns."""
        self._records.pop(entry_id, None)
