"""A client of a Redis Cluster: every command goes to the master that holds its key.

It is built on plain clients, one for each master, and not on redis-py's cluster client. redis-py's
asks the server for the keys of each XREAD before it sends the XREAD. It may send ASKING over
another connection than the command that follows. It closes the connections to all nodes when one
node replies CLUSTERDOWN. If all connections are in use, it fails instead of waiting.

The client repeats only commands that a node rejected with MOVED or ASK, and so did not run. It
raises all other errors; the next command then refreshes the slots.
"""

import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import count, repeat
from typing import Any, TypeAlias

import anyio
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.crc import key_slot

Address: TypeAlias = tuple[str, int]
"""Host and port of a node."""

MAX_REDIRECTS = 8
"""Maximum number of MOVED and ASK replies per command: nodes disagree briefly while slots move."""

SLOTS_TIMEOUT_S = 1.0
"""Timeout for a node's reply to CLUSTER SLOTS."""

SLOTS_HEDGE_S = 0.05
"""Delay before the next node is asked in parallel: all commands wait for the slots."""

NODE_CLOSE_TIMEOUT_S = 0.1
"""Timeout for closing a node's connections; after it they close in the background."""

_FAILED = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)
_STALE = (*_FAILED, exceptions.ClusterDownError, exceptions.ReadOnlyError)
_KEYLESS = frozenset(
    {"ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DBSIZE", "INFO", "PING", "PUBSUB"}
    | {"SCAN", "SCRIPT", "TIME"}
)


class ClusterClient(Redis):
    """A client of all masters. Keyless commands go to any of them, SCRIPT to every known node."""

    def __init__(self, seeds: Sequence[Address], open_node: Callable[[Address], Redis]) -> None:
        self._seeds = [*seeds]
        self._open_node = open_node
        self._nodes: dict[Address, Redis] = {}
        self._owners: dict[int, Address] = {}
        self._known = False
        self._refreshing = anyio.Lock()
        self._refreshed = 0
        # The base class requires a pool and never uses it: this class overrides all that send.
        super().__init__(connection_pool=self._node(self._seeds[0]).connection_pool)

    # -- additions to a plain client

    async def masters(self) -> list[Redis]:
        """Return a client for each master."""
        await self._refresh_slots()
        return [self._node(address) for address in sorted({*self._owners.values()})]

    async def node_for(self, key: str) -> Redis:
        """Return the client of the master that holds a key or a sharded channel."""
        return self._node(await self._owner(key_slot(key.encode())))

    def cached_address(self, key: str) -> Address | None:
        """Return the address of the master that holds a key, from the cache; None if unknown."""
        return self._owners.get(key_slot(key.encode()))

    def invalidate_slots(self) -> None:
        """Refresh the slots before the next command."""
        self._known = False

    # -- methods of a plain client

    async def execute_command(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as in the client
        """Run a command on the master that holds its key."""
        key = key_of(args)
        if key is None:
            return await self._each(args, options)
        slot = key_slot(key)
        target: Redis | None = None
        for _ in range(MAX_REDIRECTS):
            node = target or self._node(await self._owner(slot))
            try:
                if target is None:
                    return await self._at(node, args, options)
                return await self._ask(node, args, options)
            except exceptions.MovedError as moved:
                target = None
                await self._follow_moved(moved, node)
            except exceptions.AskError as ask:
                target = self._node(_redirect_target(ask, node))
        raise exceptions.ConnectionError(f"slot {slot} was redirected {MAX_REDIRECTS} times")

    async def _each(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401 - as in the client
        """Run a command on all of its nodes, then raise the first error."""
        replies, errors = [], []
        for node in await self._targets(args):
            try:
                replies.append(await self._at(node, args, options))
            except (exceptions.RedisError, OSError) as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return replies[0]

    def pipeline(
        self, transaction: bool = False, shard_hint: str | None = None
    ) -> "ClusterPipeline":
        """Return a pipeline over all masters; its commands may run in any order."""
        if transaction or shard_hint:
            raise exceptions.DataError("a pipeline over several nodes cannot be a transaction")
        return ClusterPipeline(self)

    async def scan_iter(  # type: ignore[override]
        self,
        *args: Any,  # noqa: ANN401 - as in the client
        **options: Any,  # noqa: ANN401
    ) -> AsyncIterator[Any]:
        """Yield keys of every master, some twice while slots move, then raise the first error."""
        errors: list[Exception] = []
        for node in await self.masters():
            try:
                async for key in node.scan_iter(*args, **options):
                    yield key
            except (exceptions.RedisError, OSError) as error:
                errors.append(error)
        if errors:
            raise errors[0]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to every node."""
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            await node.aclose(close_connection_pool)
        self._known = False

    # -- slots and their masters

    async def by_master(self, commands: Iterable[tuple[Any, ...]]) -> dict[Redis, list[int]]:
        """Return the positions of the commands of each master."""
        found: dict[Redis, list[int]] = {}
        for at, args in enumerate(commands):
            for node in await self._targets(args):
                found.setdefault(node, []).append(at)
        return found

    async def _targets(self, args: tuple[Any, ...]) -> list[Redis]:
        key = key_of(args)
        if key is not None:
            return [self._node(await self._owner(key_slot(key)))]
        masters = await self.masters()
        if args[0].startswith("SCRIPT"):  # also nodes that already hold keys of a moving slot
            return [self._nodes[address] for address in sorted(self._nodes)]
        return [random.choice(masters)]  # noqa: S311 - spreads load

    async def _owner(self, slot: int) -> Address:
        await self._refresh_slots()
        try:
            return self._owners[slot]
        except KeyError:
            self._known = False
            raise exceptions.ClusterDownError(f"CLUSTERDOWN no node has slot {slot}") from None

    def _node(self, address: Address) -> Redis:
        if address not in self._nodes:
            self._nodes[address] = self._open_node(address)
        return self._nodes[address]

    async def _at(self, node: Redis, args: tuple[Any, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401 - as in the client
        try:
            return await node.execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except _STALE:
            self._known = False
            raise

    async def _follow_moved(self, moved: exceptions.MovedError, sender: Redis) -> None:
        self._known = False
        await self._refresh_slots()
        # The refreshed slots may be out of date; the MOVED reply is right for this slot.
        self._owners[moved.slot_id] = _redirect_target(moved, sender)

    @staticmethod
    async def _ask(node: Redis, args: tuple[Any, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401 - as in the client
        """Run a command on the node to which its slot is moving."""
        async with node.pipeline(transaction=False) as pipe:
            pipe.execute_command("ASKING")
            pipe.execute_command(*args, **options)
            _, reply = await pipe.execute(raise_on_error=False)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _refresh_slots(self) -> None:
        """Refresh the slots if they are out of date.

        Raises the last node's error if no node replies.
        """
        if self._known:
            return
        before = self._refreshed
        async with self._refreshing:
            if self._refreshed != before:
                return  # the previous holder of the lock has refreshed them
            known = [*self._nodes]
            random.shuffle(known)
            await self._ask_for_slots(
                [*known, *(seed for seed in self._seeds if seed not in self._nodes)]
            )

    async def _ask_for_slots(self, addresses: Sequence[Address]) -> None:
        """Ask these nodes, each after a short delay, and apply the first reply."""
        reply: tuple[Any, Address] | None = None
        last_error: Exception = exceptions.ConnectionError("no node of the cluster is known")
        answered = anyio.Event()

        async def ask(address: Address) -> None:
            nonlocal reply, last_error, answered
            try:
                with anyio.fail_after(SLOTS_TIMEOUT_S):
                    rows = await self._at(self._node(address), ("CLUSTER", "SLOTS"), {})
            except (exceptions.RedisError, OSError) as error:
                last_error = error
            else:
                last_error = exceptions.ClusterDownError("CLUSTERDOWN no slot has a node")
                if rows:
                    reply = rows, address
            answered.set()
            if reply is not None:
                asking.cancel_scope.cancel()

        async with anyio.create_task_group() as asking:
            for address in addresses:
                answered = anyio.Event()
                asking.start_soon(ask, address)
                with anyio.move_on_after(SLOTS_HEDGE_S):
                    await answered.wait()
        if reply is not None:
            await self._apply_slots(*reply)
            return
        if isinstance(last_error, TimeoutError):
            last_error = exceptions.TimeoutError("no node of the cluster answers")
        raise last_error

    async def _apply_slots(self, rows: Sequence[Any], sender: Address) -> None:
        self._owners = {}
        for first, last, master, *_ in rows:
            host = master[0].decode() if master[0] else ""
            address = (host if host not in {"", "?"} else sender[0], int(master[1]))
            self._owners.update(zip(range(first, last + 1), repeat(address), strict=False))
        self._known = True
        self._refreshed += 1
        masters = {*self._owners.values()}
        for address in [each for each in self._nodes if each not in masters]:
            # Not a master any more: commands in flight fail and are retried elsewhere.
            with anyio.move_on_after(NODE_CLOSE_TIMEOUT_S):
                await self._nodes.pop(address).aclose()


class ClusterPipeline(Pipeline):
    """Commands to all masters in parallel; each gets its own reply or error."""

    def __init__(self, cluster: ClusterClient) -> None:
        self._cluster = cluster
        pool, callbacks = cluster.connection_pool, cluster.response_callbacks
        super().__init__(pool, callbacks, transaction=False, shard_hint=None)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Run the commands and return their replies.

        Without `raise_on_error` an error, also of the connection, takes the place of the reply.
        """
        commands, self.command_stack = self.command_stack, []
        replies: list[Any] = [None] * len(commands)
        targets = await self._cluster.by_master(args for args, _ in commands)

        async def run(node: Redis, positions: list[int]) -> None:
            got = await self._run_on(node, [commands[at] for at in positions])
            for at, reply in zip(positions, got, strict=True):
                replies[at] = reply

        if len(targets) == 1:
            await run(*targets.popitem())
        else:
            async with anyio.create_task_group() as tasks:
                for node, positions in targets.items():
                    tasks.start_soon(run, node, positions)
        for at, reply in enumerate(replies):
            if isinstance(reply, exceptions.AskError):  # MOVED is one too
                args, options = commands[at]
                try:
                    replies[at] = await self._cluster.execute_command(*args, **options)
                except exceptions.RedisError as error:
                    replies[at] = error
        if raise_on_error:
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies

    async def _run_on(self, node: Redis, commands: Sequence[Any]) -> list[Any]:
        try:
            async with node.pipeline(transaction=False) as pipe:
                for args, options in commands:
                    pipe.execute_command(*args, **options)
                replies: list[Any] = await pipe.execute(raise_on_error=False)
        except exceptions.RedisError as error:
            replies = [error] * len(commands)
        except OSError as error:
            replies = [exceptions.ConnectionError(str(error))] * len(commands)
        if any(isinstance(reply, _STALE) for reply in replies):
            self._cluster.invalidate_slots()
        return replies


def key_of(args: Sequence[Any]) -> bytes | None:
    """Return the first key of a command; None if it has none. Other keys are in the same slot."""
    name, _, _ = str(args[0]).partition(" ")
    if name in {"EVALSHA", "EVAL"}:
        key = args[3]
    elif name in {"XREAD", "XREADGROUP"}:
        key = args[next(at for at in count(1) if args[at] in {"STREAMS", b"STREAMS"}) + 1]
    elif name in _KEYLESS or len(args) < 2:
        return None
    else:
        key = args[1]
    return key if isinstance(key, bytes) else str(key).encode()


def _redirect_target(error: exceptions.AskError, sender: Redis) -> Address:
    """Return the target of a redirection; without a host, it is another port of the sender."""
    host = error.host or sender.connection_pool.connection_kwargs["host"]
    return host, error.port
