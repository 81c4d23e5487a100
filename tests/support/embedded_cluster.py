"""Embedded Redis Cluster and Sentinel setups, on this machine only."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS

from worker.errors import BusUnavailableError
from worker.local.redis import EmbeddedRedis, free_port

NODE_TIMEOUT_MS = 1_000
"""Timeout after which an unreachable node is failed over, in milliseconds."""

SERVICE = "turnbus"
"""Name of the master in the sentinel."""

_FORM_TIMEOUT_S = 30.0


class EmbeddedCluster:
    """A cluster of server processes.

    `async with EmbeddedCluster.start() as cluster:` starts one; it is ready at `cluster.url`.
    """

    def __init__(self, masters: list[EmbeddedRedis], replicas: list[EmbeddedRedis]) -> None:
        self.masters = masters
        """Masters in the order of their initial slots, which are equal shares."""
        self.replicas = replicas
        """Replicas in the order of their masters; empty without replicas."""

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        masters: int = 3,
        *,
        replicas: bool = False,
        config: Mapping[str, str] | None = None,
        binary: Path | None = None,
    ) -> AsyncIterator[Self]:
        """Run a cluster until the context ends.

        With `replicas`, each master has one. `config` has more directives for every server.
        Raises the errors of `EmbeddedRedis.start`.
        """
        async with AsyncExitStack() as stack:
            nodes = []
            for _ in range(masters * (2 if replicas else 1)):
                directives = {
                    "cluster-enabled": "yes",
                    "cluster-port": str(free_port()),
                    "cluster-node-timeout": str(NODE_TIMEOUT_MS),
                    "cluster-replica-validity-factor": "0",
                    "repl-diskless-sync-delay": "0",
                    "repl-ping-replica-period": "1",
                    **(config or {}),
                }
                start = EmbeddedRedis.start(config=directives, binary=binary)
                nodes.append(await stack.enter_async_context(start))
            cluster = cls(nodes[:masters], nodes[masters:])
            await cluster._form()
            yield cluster

    @property
    def url(self) -> str:
        """URL to connect to."""
        return f"redis+cluster://{','.join(f'127.0.0.1:{each.port}' for each in self.masters)}"

    async def _form(self) -> None:
        share = -(-REDIS_CLUSTER_HASH_SLOTS // len(self.masters))
        for number, node in enumerate(self.masters):
            first = number * share
            last = min(first + share, REDIS_CLUSTER_HASH_SLOTS) - 1
            async with client(node) as redis:
                # Set before the nodes meet: nodes with equal epochs need time to resolve the order.
                await execute(redis, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                await execute(redis, "CLUSTER", "ADDSLOTSRANGE", first, last)
        nodes = [*self.masters, *self.replicas]
        async with client(self.masters[0]) as redis:
            for node in nodes[1:]:
                bus = node.options["cluster-port"]
                await execute(redis, "CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        for node in nodes:
            joined = partial(_reports, node, "cluster_known_nodes", str(len(nodes)))
            await _until("the nodes did not meet", joined)
        for master, replica in zip(self.masters, self.replicas, strict=False):
            identity = await self.identity(master)
            async with client(replica) as redis:
                await execute(redis, "CLUSTER", "REPLICATE", identity)
            await _until("a replica did not follow", partial(_in_sync, replica))
        for node in nodes:
            healthy = partial(_reports, node, "cluster_state", "ok")
            await _until("the cluster did not form", healthy)

    @staticmethod
    async def identity(node: EmbeddedRedis) -> str:
        """Return the id of a node in the cluster."""
        async with client(node) as redis:
            name: Any = await execute(redis, "CLUSTER", "MYID")
        return str(name.decode())

    async def migrate(
        self, slot: int, source: EmbeddedRedis, target: EmbeddedRedis, *, pause_s: float = 0.0
    ) -> None:
        """Move a slot from one master to another, as `redis-cli` reshards.

        `pause_s` is the delay before the first key and after each key.
        """
        names = [await self.identity(node) for node in (source, target)]
        async with client(source) as old, client(target) as new:
            setslot = ("CLUSTER", "SETSLOT", slot)
            await execute(new, *setslot, "IMPORTING", names[0])
            await execute(old, *setslot, "MIGRATING", names[1])
            await anyio.sleep(pause_s)
            while keys := await execute(old, "CLUSTER", "GETKEYSINSLOT", slot, 1):
                place = ("127.0.0.1", target.port, keys[0], 0, 5_000)
                await execute(old, "MIGRATE", *place)
                await anyio.sleep(pause_s)
            for redis in (new, old):
                await execute(redis, *setslot, "NODE", names[1])


class EmbeddedSentinel:
    """A master, its replica, and a sentinel that monitors both.

    `async with EmbeddedSentinel.start() as servers:` starts them; they are in sync at
    `servers.url`.
    """

    def __init__(
        self, master: EmbeddedRedis, replica: EmbeddedRedis, sentinel: EmbeddedRedis
    ) -> None:
        self.master = master
        """The initial master."""
        self.replica = replica
        self.sentinel = sentinel

    @classmethod
    @asynccontextmanager
    async def start(cls, *, binary: Path | None = None) -> AsyncIterator[Self]:
        """Run the three servers until the context ends. Raises as `EmbeddedRedis.start` does."""
        config = {"repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1"}
        async with AsyncExitStack() as stack:
            start = EmbeddedRedis.start(config=config, binary=binary)
            master = await stack.enter_async_context(start)
            follow = {**config, "replicaof": f"127.0.0.1 {master.port}"}
            start = EmbeddedRedis.start(config=follow, binary=binary)
            replica = await stack.enter_async_context(start)
            await _until("the replica did not follow", partial(_in_sync, replica))
            sentinel = await stack.enter_async_context(EmbeddedRedis.start_sentinel(binary=binary))
            servers = cls(master, replica, sentinel)
            await servers._monitor()
            yield servers

    @property
    def url(self) -> str:
        """URL to connect to."""
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/{SERVICE}/0"

    async def _monitor(self) -> None:
        async with client(self.sentinel) as redis:
            await execute(redis, "SENTINEL", "MONITOR", SERVICE, "127.0.0.1", self.master.port, 1)
            for name, value in (
                ("down-after-milliseconds", NODE_TIMEOUT_MS),
                ("failover-timeout", 10_000),
            ):
                await execute(redis, "SENTINEL", "SET", SERVICE, name, value)

            async def has_replica() -> bool:
                return bool(await execute(redis, "SENTINEL", "REPLICAS", SERVICE))

            await _until("the sentinel did not see the replica", has_replica)


def client(server: EmbeddedRedis) -> Redis:
    """Return a plain client of one server."""
    return Redis.from_url(server.url, protocol=2, retry=Retry(NoBackoff(), 0))


async def execute(redis: Redis, *command: str | int | bytes) -> Any:
    """Send a command that the client has no method for."""
    return await redis.execute_command(*command)  # type: ignore[no-untyped-call]


async def _until(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition. Raises BusUnavailable after a timeout."""
    with anyio.move_on_after(_FORM_TIMEOUT_S):
        while True:
            if await holds():
                return
            await anyio.sleep(0.02)
    raise BusUnavailableError(f"embedded Redis: {what} in time")


async def _reports(node: EmbeddedRedis, name: str, value: str) -> bool:
    """Return whether CLUSTER INFO of a node has this value."""
    async with client(node) as redis:
        about: Any = await execute(redis, "CLUSTER", "INFO")
    return f"{name}:{value}" in about.decode().splitlines()


async def _in_sync(replica: EmbeddedRedis) -> bool:
    async with client(replica) as redis:
        return bool((await redis.info("replication")).get("master_link_status") == "up")
