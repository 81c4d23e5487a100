"""Presence channels: a worker with a subscriber on its channel is alive.

On a cluster the channels are sharded: one node serves each, by the same slots as keys, and only
that node knows its subscribers. On a single server they are plain channels.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from worker.bus.client.cluster import ClusterClient
from worker.bus.client.connection import closing

CHECK_INTERVAL_S = 1.0
"""Interval at which a subscriber checks its connection and the node of its channel."""

MAX_UNANSWERED_CHECKS = 5
"""Maximum number of checks until the server confirms a repeated subscription."""


async def stay_subscribed(redis: Redis, channel: str) -> None:
    """Stay subscribed until cancelled, or until another node serves the channel.

    Raises ConnectionError if the server is gone, also on a half-open connection.
    """
    if not isinstance(redis, ClusterClient):
        async with closing(redis.pubsub()) as pubsub:
            subscription = _Subscription(pubsub, partial(pubsub.subscribe, channel))
            await subscription.begin()
            while True:
                await subscription.poll()
    node = await redis.node_for(channel)
    with suppress(exceptions.AskError):  # or MOVED, a subclass: another node serves it
        async with closing(node.pubsub()) as pubsub:
            subscription = _Subscription(pubsub, partial(pubsub.ssubscribe, channel))
            await subscription.begin()
            while await redis.node_for(channel) is node:
                message = await subscription.poll()
                if message is not None and message["type"] == "sunsubscribe":
                    break  # the slot has moved
    redis.invalidate_slots()


class _Subscription:
    """A subscription without messages, with checks of its connection.

    Firewalls and load balancers drop a connection that is idle for minutes, without a reset. The
    server notices in the end and counts one subscriber less, so the subscriber must notice too.
    """

    def __init__(self, pubsub: PubSub, subscribe: Callable[[], Awaitable[None]]) -> None:
        self._pubsub = pubsub
        self._subscribe = subscribe
        self._unanswered = 0

    async def begin(self) -> None:
        """Subscribe."""
        await self._subscribe()

    async def poll(self) -> Any:  # noqa: ANN401 - as in the client
        """Return a message that arrives within `CHECK_INTERVAL_S`; None if there is none.

        Raises ConnectionError if the server has not answered for too long.
        """
        message = await self._pubsub.get_message(timeout=CHECK_INTERVAL_S)
        if message is not None:
            self._unanswered = 0
        elif self._unanswered == 0:
            await self._subscribe()  # repeating it changes nothing, but the server confirms it
            self._unanswered = 1
        elif self._unanswered < MAX_UNANSWERED_CHECKS:
            self._unanswered += 1
        else:
            raise exceptions.ConnectionError("the server does not confirm a subscription any more")
        return message


class SubscriberCounts:
    """Counts subscribers, always over the same connections."""

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
                counts |= await self._sharded(await self._to(node), names)
        except exceptions.AskError:  # MOVED is one too
            self._redis.invalidate_slots()
            raise
        return counts

    @staticmethod
    async def _sharded(connection: Redis, channels: Iterable[str]) -> dict[str, int]:
        """Count on the node that serves these channels.

        A node that lost their slot would count 0. After a 0 the client reads a key of the channel's
        name, which such a node redirects.
        """
        flat: Any = await connection.execute_command(  # type: ignore[no-untyped-call]
            "PUBSUB", "SHARDNUMSUB", *channels
        )
        counts = {name.decode(): count for name, count in zip(flat[::2], flat[1::2], strict=True)}
        for channel, count in counts.items():
            if not count:
                await connection.exists(channel)
        return counts

    async def _to(self, node: Redis) -> Redis:
        if node not in self._by_node:
            connection = await self._connections.enter_async_context(closing(node.client()))
            self._by_node[node] = connection
        return self._by_node[node]


@asynccontextmanager
async def subscriber_counts(redis: Redis) -> AsyncIterator[SubscriberCounts]:
    """Open a `SubscriberCounts`, and close its connections at exit."""
    async with AsyncExitStack() as connections:
        yield SubscriberCounts(redis, connections)
