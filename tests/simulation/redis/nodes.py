"""Ids and nodes of streams.

An approximate trim (`~`) removes whole nodes only. So the nodes here have the sizes of Redis's
listpacks, with the default limits of 4,096 bytes and 100 entries.
"""

from collections.abc import Sequence
from typing import TypeAlias

StreamId: TypeAlias = int
"""Milliseconds, then 64 bits of the sequence number: ids compare as Redis compares them."""

SEQUENCE_BITS = 64
SEQUENCE_MASK = (1 << SEQUENCE_BITS) - 1
MAX_ID = (1 << 2 * SEQUENCE_BITS) - 1

NODE_BYTES = 4096
NODE_ENTRIES = 100

_LISTPACK_BYTES = 7
"""Size of an empty listpack: its header and its end."""

Fields: TypeAlias = Sequence[bytes]
"""Names and values, alternating."""


def format_id(stream_id: StreamId) -> bytes:
    """Return the text of an id."""
    return b"%d-%d" % (stream_id >> SEQUENCE_BITS, stream_id & SEQUENCE_MASK)


def make_id(milliseconds: int, sequence: int) -> StreamId:
    """Return the id of these parts."""
    return milliseconds << SEQUENCE_BITS | sequence


class Node:
    """Consecutive entries in one listpack. A deleted entry keeps its place."""

    __slots__ = ("entries", "ids", "live", "names", "size_bytes")

    def __init__(self, names: Sequence[bytes]) -> None:
        self.ids: list[StreamId] = []
        self.entries: list[Fields | None] = []
        self.live = 0
        self.names = names
        self.size_bytes = _LISTPACK_BYTES + _integers_size(1, 0, len(names), 0)
        self.size_bytes += sum(map(_string_size, names))

    def append(self, stream_id: StreamId, fields: Fields) -> None:
        """Append an entry."""
        first = self.ids[0] if self.ids else stream_id
        names = fields[::2]
        milliseconds = (stream_id >> SEQUENCE_BITS) - (first >> SEQUENCE_BITS)
        sequence = (stream_id & SEQUENCE_MASK) - (first & SEQUENCE_MASK)
        if names == self.names:
            parts = len(names) + 3
            size = _integers_size(0, milliseconds, sequence, parts)
            size += sum(map(_string_size, fields[1::2]))
        else:
            parts = 2 * len(names) + 4
            size = _integers_size(0, milliseconds, sequence, len(names), parts)
            size += sum(map(_string_size, fields))
        self.size_bytes += size
        self.ids.append(stream_id)
        self.entries.append(fields)
        self.live += 1

    def is_full_for(self, fields: Fields) -> bool:
        """Return whether the next entry begins another node."""
        return (
            self.size_bytes + sum(map(len, fields)) >= NODE_BYTES or len(self.ids) >= NODE_ENTRIES
        )

    def delete_at(self, position: int) -> None:
        """Delete the entry at a position."""
        self.entries[position] = None
        self.live -= 1

    def copy(self) -> "Node":
        """Return an equal node."""
        other = Node.__new__(Node)
        other.ids, other.entries = self.ids.copy(), self.entries.copy()
        other.live, other.names, other.size_bytes = self.live, self.names, self.size_bytes
        return other


def _integers_size(*values: int) -> int:
    return sum(map(_integer_size, values))


def _integer_size(value: int) -> int:
    """Return the size of an integer in a listpack, with the length that follows it."""
    if 0 <= value <= 127:
        return 2
    if -4096 <= value <= 4095:
        return 3
    for bits, size in ((15, 4), (23, 5), (31, 6)):
        if -(1 << bits) <= value < 1 << bits:
            return size
    return 10


def _string_size(value: bytes) -> int:
    """Return the size of a string in a listpack, which stores decimal numbers as integers."""
    length = len(value)
    if length <= 20 and value[-1:].isdigit():
        try:
            number = int(value)
        except ValueError:
            pass
        else:
            if b"%d" % number == value and -(1 << 63) <= number < 1 << 63:
                return _integer_size(number)
    size = length + (1 if length < 64 else 2 if length < 4096 else 5)
    return size + (1 if size <= 127 else 2 if size < 16_383 else 3 if size < 2_097_151 else 4)
