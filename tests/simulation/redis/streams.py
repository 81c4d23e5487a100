"""Streams as Redis stores them: nodes of entries, consumer groups and their pending lists."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from tests.simulation.redis.nodes import Fields, Node, StreamId


class Pending:
    """One entry of a pending list."""

    __slots__ = ("consumer", "count", "delivered_ms")

    def __init__(self, consumer: "Consumer", delivered_ms: int, count: int) -> None:
        self.consumer = consumer
        self.delivered_ms = delivered_ms
        self.count = count


class Consumer:
    """One consumer of a group."""

    __slots__ = ("active_ms", "is_logged", "name", "pending", "seen_ms")

    def __init__(self, name: bytes, now_ms: int) -> None:
        self.name = name
        self.seen_ms = now_ms
        self.active_ms: int | None = None
        self.is_logged = False
        """Whether the server's log names it: reads that deliver nothing are not logged."""
        self.pending: dict[StreamId, Pending] = {}


class Group:
    """One consumer group. Both pending lists hold the same objects."""

    __slots__ = ("consumers", "last_id", "pending")

    def __init__(self, last_id: StreamId) -> None:
        self.last_id = last_id
        self.pending: dict[StreamId, Pending] = {}
        self.consumers: dict[bytes, Consumer] = {}

    def consumer(self, name: bytes, now_ms: int) -> Consumer:
        """Return a consumer, which is created if there is none, and note that it was seen."""
        found = self.consumers.get(name)
        if found is None:
            found = self.consumers[name] = Consumer(name, now_ms)
        found.seen_ms = now_ms
        return found

    def assign(self, stream_id: StreamId, consumer: Consumer, now_ms: int, count: int) -> None:
        """Give an entry to a consumer, whether another one has it or not."""
        pending = self.pending.get(stream_id)
        if pending is None:
            pending = self.pending[stream_id] = Pending(consumer, now_ms, count)
        elif pending.consumer is not consumer:
            del pending.consumer.pending[stream_id]
            pending.consumer = consumer
        pending.delivered_ms, pending.count = now_ms, count
        consumer.pending[stream_id] = pending
        consumer.is_logged = True

    def drop(self, stream_id: StreamId) -> bool:
        """Remove an entry from the pending lists; return whether it was there."""
        pending = self.pending.pop(stream_id, None)
        if pending is None:
            return False
        del pending.consumer.pending[stream_id]
        return True

    def remove_consumer(self, name: bytes) -> int:
        """Remove a consumer with its pending entries; return how many it had."""
        consumer = self.consumers.pop(name, None)
        if consumer is None:
            return 0
        for stream_id in consumer.pending:
            del self.pending[stream_id]
        return len(consumer.pending)

    def forget_reads(self, now_ms: int) -> None:
        """Keep what the log has: consumers that got an entry, last active when it was loaded."""
        self.consumers = {name: each for name, each in self.consumers.items() if each.is_logged}
        for each in self.consumers.values():
            each.seen_ms = now_ms
            if each.active_ms is not None:
                each.active_ms = now_ms

    def copy(self) -> "Group":
        """Return an equal group."""
        other = Group(self.last_id)
        for consumer in self.consumers.values():
            twin = other.consumer(consumer.name, consumer.seen_ms)
            twin.active_ms, twin.is_logged = consumer.active_ms, consumer.is_logged
        for stream_id, each in self.pending.items():
            twin = other.consumers[each.consumer.name]
            other.assign(stream_id, twin, each.delivered_ms, each.count)
        return other


class Stream:
    """The entries of one key, and its groups."""

    __slots__ = ("added", "groups", "last_id", "length", "max_deleted_id", "nodes")

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.length = 0
        self.added = 0
        self.last_id: StreamId = 0
        self.max_deleted_id: StreamId = 0
        self.groups: dict[bytes, Group] = {}

    def append(self, stream_id: StreamId, fields: Fields) -> None:
        """Append an entry whose id is larger than the last one."""
        if not self.nodes or self.nodes[-1].is_full_for(fields):
            self.nodes.append(Node(fields[::2]))
        self.nodes[-1].append(stream_id, fields)
        self.length += 1
        self.added += 1
        self.last_id = stream_id

    def get(self, stream_id: StreamId) -> Fields | None:
        """Return the fields of an entry; None if there is no such entry."""
        found = self._locate(stream_id)
        return None if found is None else found[0].entries[found[1]]

    def delete(self, stream_id: StreamId) -> bool:
        """Delete an entry; return whether it was there."""
        found = self._locate(stream_id)
        if found is None or found[0].entries[found[1]] is None:
            return False
        node, position = found
        self._delete_at(node, position)
        if not node.live:
            self.nodes.remove(node)
        self.max_deleted_id = max(self.max_deleted_id, stream_id)
        return True

    def between(self, first: StreamId, last: StreamId) -> Iterator[tuple[StreamId, Fields]]:
        """Yield the entries from one id to another, both included."""
        if first > self.last_id:
            return
        nodes = self.nodes
        at = max(0, bisect_right(nodes, first, key=_first_id) - 1)
        for node in nodes[at:]:
            ids, entries = node.ids, node.entries
            for position in range(bisect_left(ids, first), len(ids)):
                if ids[position] > last:
                    return
                fields = entries[position]
                if fields is not None:
                    yield ids[position], fields

    def between_reversed(
        self, first: StreamId, last: StreamId
    ) -> Iterator[tuple[StreamId, Fields]]:
        """Yield the entries of `between` from the last one on."""
        for node in reversed(self.nodes):
            ids, entries = node.ids, node.entries
            for position in range(bisect_right(ids, last) - 1, -1, -1):
                if ids[position] < first:
                    return
                fields = entries[position]
                if fields is not None:
                    yield ids[position], fields

    def trim_to_length(self, length: int, *, approximate: bool, limit: int) -> int:
        """Remove the oldest entries beyond a number; return how many. `limit` 0 is none."""
        before = self.length
        while self.length > length:
            node = self.nodes[0]
            if limit and before - self.length + node.live > limit:
                break
            if self.length - node.live >= length:
                self._delete_first_node()
            elif approximate:
                break
            else:
                for position, fields in enumerate(node.entries):
                    if self.length > length and fields is not None:
                        self._delete_at(node, position)
        return before - self.length

    def trim_before(self, first: StreamId, *, approximate: bool, limit: int) -> int:
        """Remove the entries with smaller ids; return how many. `limit` 0 is none."""
        before = self.length
        while self.nodes and self.nodes[0].ids[0] < first:
            node = self.nodes[0]
            if limit and before - self.length + node.live > limit:
                break
            if node.ids[-1] < first:
                self._delete_first_node()
            elif approximate:
                break
            else:
                for position in range(bisect_left(node.ids, first)):
                    if node.entries[position] is not None:
                        self._delete_at(node, position)
                break
        return before - self.length

    def copy(self) -> "Stream":
        """Return an equal stream."""
        other = Stream()
        other.nodes = [node.copy() for node in self.nodes]
        other.length, other.added = self.length, self.added
        other.last_id, other.max_deleted_id = self.last_id, self.max_deleted_id
        other.groups = {name: group.copy() for name, group in self.groups.items()}
        return other

    def _locate(self, stream_id: StreamId) -> tuple[Node, int] | None:
        at = bisect_right(self.nodes, stream_id, key=_first_id) - 1
        if at < 0:
            return None
        node = self.nodes[at]
        position = bisect_left(node.ids, stream_id)
        if position == len(node.ids) or node.ids[position] != stream_id:
            return None
        return node, position

    def _delete_at(self, node: Node, position: int) -> None:
        node.delete_at(position)
        self.length -= 1

    def _delete_first_node(self) -> None:
        self.length -= self.nodes.pop(0).live


def _first_id(node: Node) -> StreamId:
    return node.ids[0]
