"""A cluster: several servers, each of which has the keys of its slots and redirects all others.

cluster = Cluster(equal_shares(3), [time.time] * 3, random.Random(1))
for node in cluster.nodes:
    listener = await asyncio.get_running_loop().create_server(node, "127.0.0.1", 0)
    node.myself.host, node.myself.port = listener.sockets[0].getsockname()

There are no replicas, and the nodes' own network never fails: a node learns who has taken a slot
when its `cron` runs.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

from redis.crc import key_slot

from tests.simulation.redis.arguments import integer
from tests.simulation.redis.cluster_connection import ClusterConnection
from tests.simulation.redis.cluster_model import ClusterModel
from tests.simulation.redis.commands import Args
from tests.simulation.redis.dialect import VALKEY_9, Dialect
from tests.simulation.redis.resp import OK, CommandError, Reply, Status, text_of
from tests.simulation.redis.server import RedisServer
from tests.simulation.redis.slots import SLOTS, Peer, SlotView

CRON_INTERVAL_S: Final = 0.1
"""Interval at which a server calls `ClusterNode.cron`."""

JOIN_DELAY_S: Final = 2.0
"""Time after its start during which a master rejects commands: another node may have its slots."""

_NO_KEY: Final = Status(b"NOKEY")


class ClusterNode(RedisServer):
    """One master. `myself` has its address, which must be set before clients connect."""

    model_type = ClusterModel
    connection_type = ClusterConnection
    model: ClusterModel

    def __init__(
        self,
        cluster: "Cluster",
        myself: Peer,
        owners: Sequence[Peer],
        clock: Callable[[], float],
        rng: random.Random,
        dialect: Dialect = VALKEY_9,
    ) -> None:
        super().__init__(clock, rng, dialect)
        self.myself: Final = myself
        self.view: Final = SlotView(myself, owners)
        self.model.view = self.view
        self._cluster = cluster
        self._clock = clock
        self._joins_at = float("-inf")

    @property
    def has_joined(self) -> bool:
        """Whether the node serves its slots: a restarted one waits first."""
        return self._clock() >= self._joins_at

    def restart(self, lost_writes: int = 0) -> None:
        """Start again with the keys of the log. The slots are those of before."""
        super().restart(lost_writes)
        self._joins_at = self._clock() + JOIN_DELAY_S

    def cron(self) -> None:
        """Learn who has taken slots, and redirect clients that wait for a key that has moved."""
        for slot, owner in self._cluster.taken.items():
            if self.view.owners[slot] is not owner:
                self._set_owner(slot, owner)
        for connection, key in self.waiting.first_keys():
            slot = key_slot(key)
            if not self.view.owns(slot) and slot not in self.view.importing:
                connection.end_wait(self.view.moved(slot))

    def _set_owner(self, slot: int, owner: Peer) -> None:
        view = self.view
        if view.owns(slot) and owner is not view.myself:
            view.migrating.pop(slot, None)
            for channel in [name for name in self.channels if key_slot(name) == slot]:
                for connection in [*self.channels[channel]]:
                    if isinstance(connection, ClusterConnection):
                        connection.drop_channel(channel)
        if owner is view.myself:
            view.importing.pop(slot, None)
        view.owners[slot] = owner

    # -- commands of an administrator

    def cluster_command(self, args: Args) -> Reply:
        """Run CLUSTER with a subcommand."""
        match args[1].upper(), len(args):
            case b"SLOTS", 2:
                return [
                    [first, last, [each.host.encode(), each.port, each.node_id, []]]
                    for first, last, each in self.view.ranges()
                ]
            case b"MYID", 2:
                return self.myself.node_id
            case b"KEYSLOT", 3:
                return key_slot(args[2])
            case b"INFO", 2:
                state = "ok" if self.has_joined else "fail"
                return f"cluster_state:{state}\r\ncluster_slots_assigned:{SLOTS}\r\n".encode()
            case b"COUNTKEYSINSLOT", 3:
                return len(self.model.keys_in(_slot(args[2])))
            case b"GETKEYSINSLOT", 4:
                return [*self.model.keys_in(_slot(args[2]))[: integer(args[3])]]
            case (b"SETSLOT", 4) | (b"SETSLOT", 5):
                return self._set_slot(_slot(args[2]), args[3].upper(), args[4:])
        raise CommandError(f"ERR unknown subcommand '{text_of(args[1])}'. Try CLUSTER HELP.")

    def _set_slot(self, slot: int, action: bytes, names: Sequence[bytes]) -> Reply:
        view = self.view
        if action == b"STABLE" and not names:
            view.migrating.pop(slot, None)
            view.importing.pop(slot, None)
            return OK
        if action not in (b"IMPORTING", b"MIGRATING", b"NODE") or len(names) != 1:
            raise CommandError(
                "ERR Invalid CLUSTER SETSLOT action or number of arguments. Try CLUSTER HELP"
            )
        if action == b"MIGRATING" and not view.owns(slot):
            raise CommandError(f"ERR I'm not the owner of hash slot {slot}")
        if action == b"IMPORTING" and view.owns(slot):
            raise CommandError(f"ERR I'm already the owner of hash slot {slot}")
        peer = self._cluster.node_named(names[0]).myself
        if action == b"MIGRATING":
            view.migrating[slot] = peer
        elif action == b"IMPORTING":
            view.importing[slot] = peer
        else:
            if view.owns(slot) and peer is not view.myself and self.model.keys_in(slot):
                raise CommandError(
                    f"ERR Can't assign hashslot {slot} to a different node while I still hold keys "
                    "for this hash slot."
                )
            if peer is view.myself:
                self._cluster.taken[slot] = peer
            self._set_owner(slot, peer)
        return OK

    def migrate(self, args: Args) -> Reply:
        """Move a key to another node, as MIGRATE with one key."""
        key = args[3]
        target = self._cluster.node_at(text_of(args[1]), integer(args[2]))
        if not target.is_up:
            raise CommandError("IOERR error or timeout connecting to the client")
        if not self.model.has(key):
            return _NO_KEY
        value, expiry_ms = self.model.dump(key)
        reply = target.model.run([b"RESTORE", key, b"%d" % expiry_ms, value])
        if isinstance(reply, CommandError):
            raise CommandError(f"ERR Target instance replied with error: {reply.text}")
        target.waiting.serve()
        self.execute("DEL", key)
        return OK


class Cluster:
    """The nodes of a cluster, and which of them has taken which slot."""

    def __init__(
        self,
        owners: Sequence[int],
        clocks: Sequence[Callable[[], float]],
        rng: random.Random,
        dialect: Dialect = VALKEY_9,
    ) -> None:
        """`owners` has the number of the node of each slot, `clocks` a clock for each node."""
        peers = [Peer(f"{rng.getrandbits(160):040x}".encode(), "", 0) for _ in clocks]
        by_slot = [peers[number] for number in owners]
        self.taken: Final[dict[int, Peer]] = {}
        """The last node that took a slot, of the slots that have moved."""
        self.nodes: Final = [
            ClusterNode(self, peer, by_slot, clock, rng, dialect)
            for peer, clock in zip(peers, clocks, strict=True)
        ]
        self._by_peer = {node.myself: node for node in self.nodes}

    def node_named(self, node_id: bytes) -> ClusterNode:
        """Return the node with an id. Raises `CommandError`."""
        for node in self.nodes:
            if node.myself.node_id == node_id:
                return node
        raise CommandError(f"ERR I don't know about node {text_of(node_id)}")

    def node_at(self, host: str, port: int) -> ClusterNode:
        """Return the node with an address. Raises `CommandError`."""
        for node in self.nodes:
            if (node.myself.host, node.myself.port) == (host, port):
                return node
        raise CommandError("IOERR error or timeout connecting to the client")

    def owner(self, slot: int) -> ClusterNode:
        """Return the node that owns a slot, whether the others know it or not."""
        return self._by_peer[self.taken.get(slot) or self.nodes[0].view.owners[slot]]

    def holder(self, key: bytes) -> ClusterNode:
        """Return the node that has a key, or would get it."""
        slot = key_slot(key)
        node = self.owner(slot)
        target = node.view.migrating.get(slot)
        if target is None or node.model.has(key):
            return node
        return self._by_peer[target]


class SlotMove:
    """A slot on its way to another node, as `redis-cli --cluster reshard` moves it."""

    def __init__(self, cluster: Cluster, slot: int, target: ClusterNode) -> None:
        self._source: Final = cluster.owner(slot)
        self._target: Final = target
        self._slot: Final = slot

    def begin(self) -> None:
        """Let the source redirect commands on keys that it does not have."""
        self._set(self._target, b"IMPORTING", self._source)
        self._set(self._source, b"MIGRATING", self._target)

    def move_key(self) -> bool:
        """Move one key; return whether there was one. Raises `CommandError` if it cannot move."""
        keys = self._source.model.keys_in(self._slot)
        if not keys:
            return False
        place = self._target.myself
        self._source.migrate([b"MIGRATE", place.host.encode(), b"%d" % place.port, keys[0]])
        return True

    def finish(self) -> None:
        """Give the slot to the target. The source and other nodes learn it later."""
        self._set(self._target, b"NODE", self._target)

    def _set(self, node: ClusterNode, action: bytes, other: ClusterNode) -> None:
        call = [b"CLUSTER", b"SETSLOT", b"%d" % self._slot, action, other.myself.node_id]
        node.cluster_command(call)


def equal_shares(nodes: int) -> list[int]:
    """Return the owner of each slot, as a new cluster has them."""
    share = -(-SLOTS // nodes)
    return [slot // share for slot in range(SLOTS)]


def _slot(text: bytes) -> int:
    slot = integer(text, "ERR Invalid or out of range slot")
    if not 0 <= slot < SLOTS:
        raise CommandError("ERR Invalid or out of range slot")
    return slot
