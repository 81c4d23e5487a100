"""The keys of a server: values, expiry, and the changes of the command that runs."""

import zlib
from bisect import bisect_left
from collections.abc import Collection, Iterator
from typing import TypeAlias, TypeVar

from tests.simulation.redis.dialect import VALKEY_9, Dialect
from tests.simulation.redis.resp import CommandError
from tests.simulation.redis.streams import Stream

WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"


class SortedSet:
    """Members with scores, in the order of (score, member)."""

    __slots__ = ("_sorted", "scores")

    def __init__(self) -> None:
        self.scores: dict[bytes, float] = {}
        self._sorted: list[tuple[float, bytes]] | None = []

    def add(self, member: bytes, score: float) -> None:
        """Add a member, or change its score."""
        self.scores[member] = score
        self._sorted = None

    def remove(self, member: bytes) -> bool:
        """Remove a member; return whether it was there."""
        if self.scores.pop(member, None) is None:
            return False
        self._sorted = None
        return True

    @property
    def ordered(self) -> list[tuple[float, bytes]]:
        """Pairs of (score, member)."""
        if self._sorted is None:
            self._sorted = sorted((score, member) for member, score in self.scores.items())
        return self._sorted

    def copy(self) -> "SortedSet":
        """Return an equal set."""
        other = SortedSet()
        other.scores, other._sorted = self.scores.copy(), None
        return other


Value: TypeAlias = bytes | dict[bytes, bytes] | set[bytes] | SortedSet | Stream
V = TypeVar("V", bytes, dict[bytes, bytes], set[bytes], SortedSet, Stream)

TYPE_NAMES: dict[type, bytes] = {
    bytes: b"string",
    dict: b"hash",
    set: b"set",
    SortedSet: b"zset",
    Stream: b"stream",
}


class Keyspace:
    """One database. A key expires when a command looks it up after its time."""

    def __init__(self, dialect: Dialect = VALKEY_9) -> None:
        self.dialect = dialect
        self._values: dict[bytes, Value] = {}
        self._expiries_ms: dict[bytes, int] = {}
        self.now_us = 0
        """Unix time of the command or script that runs; it stands still meanwhile."""
        self.now_ms = 0
        self.changes = 0
        """Number of changes since the server started."""
        self.awaited: Collection[bytes] = ()
        """Keys for which clients wait."""
        self.ready: dict[bytes, None] = {}
        """Awaited keys that changed, in order."""

    def set_time(self, now_us: int) -> None:
        """Set the time of the next command."""
        self.now_us = now_us
        self.now_ms = now_us // 1000

    def changed(self, key: bytes) -> None:
        """Record a change of a key."""
        self.changes += 1
        if key in self.awaited:
            self.ready[key] = None

    def lookup(self, key: bytes) -> Value | None:
        """Return the value of a key; None if there is none, or if it expired."""
        if key in self._expiries_ms and self.now_ms > self._expiries_ms[key]:
            self.remove(key)
        return self._values.get(key)

    def find(self, key: bytes, kind: type[V]) -> V | None:
        """Return a value of this type, or None. Raises WRONGTYPE for a value of another type."""
        value = self.lookup(key)
        if value is None or isinstance(value, kind):
            return value
        raise CommandError(WRONG_TYPE)

    def stream(self, key: bytes) -> Stream | None:
        """Return a stream, or None."""
        return self.find(key, Stream)

    def hash(self, key: bytes) -> dict[bytes, bytes] | None:
        """Return a hash, or None."""
        value = self.lookup(key)
        if value is None or isinstance(value, dict):
            return value
        raise CommandError(WRONG_TYPE)

    def put(self, key: bytes, value: Value) -> None:
        """Store a value. The expiry of the key stays."""
        self._values[key] = value

    def remove(self, key: bytes) -> bool:
        """Remove a key; return whether it was there."""
        self._expiries_ms.pop(key, None)
        if self._values.pop(key, None) is None:
            return False
        self.changed(key)
        return True

    def remove_if_empty(self, key: bytes) -> None:
        """Remove a key whose hash, set or sorted set lost its last member."""
        value = self._values[key]
        if isinstance(value, SortedSet):
            empty = not value.scores
        else:
            empty = not isinstance(value, Stream) and not value
        if empty:
            self.remove(key)

    def clear(self) -> None:
        """Remove every key."""
        for key in [*self._values]:
            self.remove(key)

    def expiry_ms(self, key: bytes) -> int | None:
        """Return the Unix time at which a key expires."""
        return self._expiries_ms.get(key)

    def expire_at(self, key: bytes, when_ms: int | None) -> None:
        """Set or remove the expiry of a key. A time in the past removes the key."""
        if when_ms is None:
            self._expiries_ms.pop(key, None)
        elif when_ms <= self.now_ms:
            self.remove(key)
        else:
            self._expiries_ms[key] = when_ms

    def existing(self) -> Iterator[bytes]:
        """Yield the keys that have not expired."""
        for key in [*self._values]:
            if self.lookup(key) is not None:
                yield key

    def forget_reads(self) -> None:
        """Forget what a server that comes back from its log does not know of its readers."""
        for value in self._values.values():
            if isinstance(value, Stream):
                for group in value.groups.values():
                    group.forget_reads(self.now_ms)

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """Return the next keys, and the cursor after them; 0 is the first one and the end.

        The order is that of a hash: keys that come and go do not move the others.
        """
        hashed = sorted((zlib.crc32(key), key) for key in self.existing())
        at = bisect_left(hashed, (cursor, b""))
        end = min(at + count, len(hashed))
        while 0 < end < len(hashed) and hashed[end][0] == hashed[end - 1][0]:
            end += 1
        after = hashed[end][0] if end < len(hashed) else 0
        return after, [key for _, key in hashed[at:end]]

    def copy(self) -> "Keyspace":
        """Return a copy that shares nothing mutable."""
        other = Keyspace(self.dialect)
        other._values = {
            key: value if isinstance(value, bytes) else value.copy()
            for key, value in self._values.items()
        }
        other._expiries_ms = self._expiries_ms.copy()
        return other
