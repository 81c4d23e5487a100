"""The Redis of a simulated fleet: one server, or the masters of a cluster."""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from redis.crc import key_slot

from tests.simulation.fleet.history import ScriptRun
from tests.simulation.fleet.producers import Refusal
from tests.simulation.fleet.redis_host import PORT, RedisHost
from tests.simulation.redis.cluster import Cluster, ClusterNode, SlotMove
from tests.simulation.redis.resp import Reply
from tests.simulation.redis.server import RedisServer
from tests.simulation.redis.slots import SLOTS
from tests.simulation.virtual.hosts import Host
from tests.simulation.virtual.patches import EPOCH_S
from tests.simulation.virtual.world import World

BLOCK: Final = 1_024
"""Number of neighbouring slots that a cluster has on one master at first."""


class RedisHosts:
    """All servers. Commands beside the network go to the one that has their key."""

    def __init__(self, world: World, shards: int, rng: random.Random) -> None:
        self._cluster: Cluster | None = None
        self._moving: Final[set[int]] = set()
        self.running: RedisHost | None = None
        """The server that runs a script now."""
        self.on_script: Callable[[ScriptRun], None] = lambda run: None
        names = ["redis", *(f"redis-{number}" for number in range(2, shards + 1))]
        machines = [world.host(name) for name in names]
        clocks = [partial(_unix_time, world, machine) for machine in machines]
        servers: Sequence[RedisServer]
        if shards == 1:
            servers = [RedisServer(clocks[0], rng)]
        else:
            self._cluster = Cluster(draw_owners(rng, shards), clocks, rng)
            servers = self._cluster.nodes
            for node, machine in zip(self._cluster.nodes, machines, strict=True):
                node.myself.host, node.myself.port = machine.address, PORT
        self.hosts: Final = [
            RedisHost(machine, server, clock, world.now)
            for machine, server, clock in zip(machines, servers, clocks, strict=True)
        ]
        for host in self.hosts:
            host.on_script = partial(self._on_script, host)

    @property
    def url(self) -> str:
        """URL for clients."""
        if self._cluster is None:
            return f"redis://{self.hosts[0].address}/0"
        return f"redis+cluster://{','.join(host.address for host in self.hosts)}"

    @property
    def serving(self) -> bool:
        """Whether every server answers."""
        return all(host.serving for host in self.hosts)

    def start(self) -> None:
        """Start every server."""
        for host in self.hosts:
            host.start()

    def holder(self, key: bytes | str) -> RedisHost:
        """Return the server that has a key, or would get it."""
        if self._cluster is None:
            return self.hosts[0]
        node = self._cluster.holder(key if isinstance(key, bytes) else key.encode())
        return next(host for host in self.hosts if host.server is node)

    def command(self, *args: bytes | str | int) -> Reply:
        """Run a command with a key, also on a full server; None while the server is down."""
        return self._holder_for(args).command(*args)

    def read(self, *args: bytes | str | int) -> Reply:
        """Run a command with a key on what the server has stored, whether it is up or not."""
        return self._holder_for(args).server.model.execute(*args)

    def append(self, key: str, fields: Mapping[str, bytes | str]) -> bytes | Refusal:
        """Append an entry to a stream, as a producer does."""
        return self.holder(key).append(key, fields)

    def last_id(self, key: str) -> bytes | None:
        """Return the last id of a stream, 0-0 of a missing one; None for another type."""
        return self.holder(key).last_id(key)

    def commit_number(self, state_key: bytes) -> int | None:
        """Return the number of the last commit of a session's owner."""
        return self.holder(state_key).commit_number(state_key)

    def begin_move(self, key: str) -> "KeyMove | None":
        """Begin to move the slot of a key to the next master; None if it cannot move now."""
        slot = key_slot(key.encode())
        if self._cluster is None or slot in self._moving:
            return None
        source = self._cluster.owner(slot)
        nodes = self._cluster.nodes
        target = nodes[(nodes.index(source) + 1) % len(nodes)]
        if not (source.is_up and target.is_up) or target.view.owns(slot):
            return None  # the target has yet to learn that it lost the slot
        self._moving.add(slot)
        move = SlotMove(self._cluster, slot, target)
        move.begin()
        return KeyMove(move, (source, target), partial(self._moving.discard, slot))

    def _holder_for(self, args: Sequence[bytes | str | int]) -> RedisHost:
        if self._cluster is None:
            return self.hosts[0]
        call = [part if isinstance(part, bytes) else str(part).encode() for part in args]
        return self.holder(self.hosts[0].server.model.keys_of(call)[0])

    def _on_script(self, host: RedisHost, run: ScriptRun) -> None:
        self.running = host
        try:
            self.on_script(run)
        finally:
            self.running = None


class KeyMove:
    """A slot whose keys move one at a time, while both masters are up."""

    def __init__(
        self, move: SlotMove, nodes: Sequence[ClusterNode], finished: Callable[[], object]
    ) -> None:
        self._move = move
        self._nodes = nodes
        self._finished = finished

    def step(self) -> bool:
        """Move a key, or the slot if it has none left; return whether the slot has moved."""
        if not all(node.is_up for node in self._nodes):
            return False
        if self._move.move_key():
            return False
        self._move.finish()
        self._finished()
        return True


def draw_owners(rng: random.Random, shards: int) -> list[int]:
    """Draw the master of each slot: blocks of neighbours, some on each master."""
    blocks = [*range(shards), *(rng.randrange(shards) for _ in range(SLOTS // BLOCK - shards))]
    rng.shuffle(blocks)
    return [blocks[slot // BLOCK] for slot in range(SLOTS)]


def _unix_time(world: World, machine: Host) -> float:
    return EPOCH_S + world.now() + machine.skew_s
