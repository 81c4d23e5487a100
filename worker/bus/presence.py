"""Presence channels: a worker with a subscriber on its channel is alive.

On a cluster the channels are sharded: one node serves each, by the same slots as keys, and only
that node knows its subscribers. On a single server they are plain channels.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

from redis import exceptions
from redis.asyncio import Redis

from worker.bus.client.cluster import ClusterClient
from worker.bus.client.connection import closing

CHECK_INTERVAL_S = 1.0
"""Interval at which a subscriber checks its connection and the node of its channel."""

MAX_UNANSWERED_CHECKS = 5
"""Maximum number of checks until the server confirms a repeated subscription."""


async def stay_subscribed(redis: Redis, channel: str) -> None:
    """Stay subscribed until cancelled, or until another node serves the channel.

    Firewalls and load balancers drop a connection that is idle for minutes, without a reset. The
    server notices in the end and counts one subscriber less, so the subscriber must notice too.

    Raises ConnectionError if the server is gone, also on such a half-open connection.
    """
    cluster = redis if isinstance(redis, ClusterClient) else None
    node = redis if cluster is None else await cluster.node_for(channel)
    unanswered = 0
    with suppress(exceptions.AskError):  # or MOVED, a subclass: another node serves the channel
        async with closing(node.pubsub()) as pubsub:
            subscribe = pubsub.subscribe if cluster is None else pubsub.ssubscribe
            await subscribe(channel)
            while cluster is None or await cluster.node_for(channel) is node:
                message = await pubsub.get_message(timeout=CHECK_INTERVAL_S)
                if message is not None:
                    unanswered = 0
                    if message["type"] == "sunsubscribe":
                        break  # the slot has moved
                elif unanswered == MAX_UNANSWERED_CHECKS:
                    raise exceptions.ConnectionError(
                        "the server does not confirm a subscription any more"
                    )
                else:
                    if unanswered == 0:  # repeating it changes nothing, but the server confirms it
                        await subscribe(channel)
                    unanswered += 1
    if cluster is not None:
        cluster.invalidate_slots()


class SubscriberCounts:
    """Counts subscribers, always over the same connections, which `connections` closes."""

    def __init__(self, redis: Redis, connections: AsyncExitStack) -> None:
        self._redis = redis
        self._connections = connections
        self._by_node: dict[Redis, Redis] = {}
        self._asked: dict[str, Redis] = {}

    async def count(self, channels: Sequence[str]) -> dict[str, int]:
        """Return the number of subscribers of each channel.

        Raises ConnectionError if a channel has moved to another node: counts of two nodes cannot
        be compared.
        """
        if not isinstance(self._redis, ClusterClient):
            rows: Any = await (await self._to(self._redis)).pubsub_numsub(*channels)
            return {channel.decode(): count for channel, count in rows}
        by_node: dict[Redis, list[str]] = {}
        for channel in channels:
            node = await self._redis.node_for(channel)
            if self._asked.setdefault(channel, node) is not node:
                raise exceptions.ConnectionError(f"channel {channel} has moved to another node")
            by_node.setdefault(node, []).append(channel)
        counts: dict[str, int] = {}
        try:
            for node, names in by_node.items():
                connection = await self._to(node)
                flat: Any = await connection.execute_command(  # type: ignore[no-untyped-call]
                    "PUBSUB", "SHARDNUMSUB", *names
                )
                for name, count in zip(flat[::2], flat[1::2], strict=True):
                    counts[name.decode()] = count
                    if not count:
                        await connection.exists(name)  # a node that lost the slot redirects it
        except exceptions.AskError:  # MOVED is one too
            self._redis.invalidate_slots()
            raise
        return counts

    async def _to(self, node: Redis) -> Redis:
        if node not in self._by_node:
            connection = await self._connections.enter_async_context(closing(node.client()))
            self._by_node[node] = connection
        return self._by_node[node]
