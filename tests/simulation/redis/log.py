"""The log of writes, from which a killed server comes back, with or without its last writes.

A record holds the commands of one write and its time. Repeating them in order gives the same keys:
nothing else decides what a command does. Old records are replaced by copies of the keys.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from tests.simulation.redis.keyspace import Keyspace

COPY_INTERVAL: Final = 2_000
"""Number of records between two copies of the keys. The last two copies stay."""


class Record(NamedTuple):
    """One write: a command, or all commands of a transaction."""

    now_us: int
    commands: Sequence[list[bytes]]


class WriteLog:
    """The writes of a server since its start."""

    def __init__(self, empty: Keyspace) -> None:
        self._copies = deque([(0, empty)])
        self._records: deque[Record] = deque()
        self._first = 0  # position of the first record that is kept
        self.length = 0
        """Number of writes."""

    def append(self, record: Record, db: Keyspace) -> None:
        """Add a write, after which the keys are those of `db`."""
        self._records.append(record)
        self.length += 1
        if self.length - self._copies[-1][0] == COPY_INTERVAL:
            self._copies.append((self.length, db.copy()))
            if len(self._copies) > 2:
                self._copies.popleft()
                while self._first < self._copies[0][0]:
                    self._records.popleft()
                    self._first += 1

    def count_since(self, unix_s: float) -> int:
        """Return how many of the kept writes are later than a time of the server's clock."""
        return sum(record.now_us > unix_s * 1e6 for record in self._records)

    def cut(self, lost_writes: int) -> tuple[Keyspace, Sequence[Record]]:
        """Drop the last writes; return keys, and the writes to repeat on them.

        Raises `ValueError` if the log no longer has the keys from before these writes.
        """
        end = self.length - lost_writes
        if not self._first <= end <= self.length:
            raise ValueError(f"the log keeps {len(self._records)} writes, not {lost_writes}")
        while self.length > end:
            self._records.pop()
            self.length -= 1
        while self._copies[-1][0] > end:
            self._copies.pop()
        position, db = self._copies[-1]
        return db.copy(), [*self._from(position)]

    def _from(self, position: int) -> Iterator[Record]:
        for at, record in enumerate(self._records, self._first):
            if at >= position:
                yield record
