"""The event log of a run: equal byte for byte between two runs of one seed."""

import hashlib
from collections.abc import Callable
from zlib import crc32


class EventLog:
    """Lines for rare events, and a running checksum of every delivered byte.

    Each line carries the checksum and the number of iterations of the loop so far. So the first
    line that differs between two runs comes soon after the first difference.
    """

    def __init__(self, progress: Callable[[], tuple[float, int]]) -> None:
        self.lines: list[str] = []
        self._progress = progress
        self._checksum = 0
        self._deliveries = 0

    def note(self, host: str, what: str) -> None:
        """Add a line."""
        now, iterations = self._progress()
        mark = f"{self._checksum:08x}/{self._deliveries}/{iterations}"
        self.lines.append(f"{now:.6f} {host}: {what} [{mark}]")

    def delivered(self, data: bytes) -> None:
        """Add bytes that arrived at a host to the checksum."""
        self._deliveries += 1
        self._checksum = crc32(data, self._checksum)

    def finish(self) -> None:
        """Keep the end of the run, and forget the world."""
        end = self._progress()
        self._progress = lambda: end

    @property
    def digest(self) -> str:
        """A hash of all lines and bytes."""
        now, iterations = self._progress()
        end = f"{now:.6f} {self._checksum:08x} {self._deliveries} {iterations}"
        return hashlib.sha256("\n".join([*self.lines, end]).encode()).hexdigest()
