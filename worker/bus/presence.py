"""Channels that say by their subscribers who lives.

On a cluster they are sharded: one node keeps each, by the same slots as keys, and only that node
knows its subscribers. Elsewhere they are plain.
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
"""How often a subscriber looks whether its channel is kept elsewhere by now, and by anybody."""

MAX_UNANSWERED_CHECKS = 5
"""Looks within which a subscription that is asked for again has to be confirmed."""


async def stay_subscribed(redis: Redis, channel: str) -> None:
    """Stay subscribed until cancelled, or until another node keeps the channel.

    Raises ConnectionError if the server is gone, also where nothing on the way says so.
    """
    if not isinstance(redis, ClusterClient):
        async with closing(redis.pubsub()) as pubsub:
            subscription = _Subscription(pubsub, partial(pubsub.subscribe, channel))
            await subscription.begin()
            while True:
                await subscription.poll()
    node = await redis.node_for(channel)
    with suppress(exceptions.AskError):  # or MOVED, which is one too: another node keeps it
        async with closing(node.pubsub()) as pubsub:
            subscription = _Subscription(pubsub, partial(pubsub.ssubscribe, channel))
            await subscription.begin()
            while await redis.node_for(channel) is node:
                message = await subscription.poll()
                if message is not None and message["type"] == "sunsubscribe":
                    break  # its slot has moved
    redis.invalidate_slots()


class _Subscription:
    """A subscription over which nothing is ever said, and that is looked after all the same.

    Firewalls and load balancers forget a connection that is idle for minutes, and tell nobody. The
    server finds out in the end, and counts one subscriber less; we have to, too.
    """

    def __init__(self, pubsub: PubSub, subscribe: Callable[[], Awaitable[None]]) -> None:
        self._pubsub = pubsub
        self._subscribe = subscribe
        self._unanswered = 0

    async def begin(self) -> None:
        """Subscribe."""
        await self._subscribe()

    async def poll(self) -> Any:  # noqa: ANN401 - as in the client
        """Return what comes within `LOOK_S`, None if nothing does.

        Raises ConnectionError if the server has not answered for too long.
        """
        message = await self._pubsub.get_message(timeout=CHECK_INTERVAL_S)
        if message is not None:
            self._unanswered = 0
        elif self._unanswered == 0:
            await self._subscribe()  # again, which changes nothing, and is answered
            self._unanswered = 1
        elif self._unanswered < MAX_UNANSWERED_CHECKS:
            self._unanswered += 1
        else:
            raise exceptions.ConnectionError("a subscription is not answered any more")
        return message


class SubscriberCounts:
    """Counts subscribers, over the same connections each time."""

    def __init__(self, redis: Redis, connections: AsyncExitStack) -> None:
        self._redis = redis
        self._connections = connections
        self._by_node: dict[Redis, Redis] = {}
        self._asked: dict[str, Redis] = {}

    async def count(self, channels: Sequence[str]) -> dict[str, int]:
        """Return how many subscribe to each channel.

        Raises ConnectionError where another node keeps a channel than the last time: counts of
        two nodes cannot be compared.
        """
        if not isinstance(self._redis, ClusterClient):
            rows: Any = await (await self._to(self._redis)).pubsub_numsub(*channels)
            return {channel.decode(): count for channel, count in rows}
        by_node: dict[Redis, list[str]] = {}
        for channel in channels:
            node = await self._redis.node_for(channel)
            if self._asked.setdefault(channel, node) is not node:
                raise exceptions.ConnectionError(f"another node keeps {channel}")
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
        """Count on the one node that keeps these channels.

        A node that keeps them no more would count 0: where it does, it is asked for a key of the
        channel's name, and refuses if the slot is another's.
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
    """Give what counts subscribers."""
    async with AsyncExitStack() as connections:
        yield SubscriberCounts(redis, connections)
