"""Presence subscriptions: their owner detects when one is gone."""

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support.acl import GuardedRedis, as_user
from tests.support.polling import PATIENCE_S, eventually
from worker.bench.proxy import Proxy
from worker.bus import presence
from worker.bus.client.connection import connect
from worker.bus.presence import stay_subscribed


async def test_silently_dropped_subscription_is_detected(
    redis: Redis,
    redis_server: GuardedRedis,
    bus_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection never ends, as behind a firewall that drops idle connections."""
    monkeypatch.setattr(presence, "CHECK_INTERVAL_S", 0.1)
    channel = f"{bus_prefix}:alive:one"

    async def subscribers() -> int:
        ((_, count),) = await redis.pubsub_numsub(channel)
        return int(count)

    async with Proxy.open(lambda: redis_server.port) as proxy:
        url = as_user(f"redis://127.0.0.1:{proxy.port}/0", "worker")
        async with connect(url) as through_proxy:

            async def forgotten() -> None:
                await eventually(subscribers, "the subscription")
                await anyio.sleep(2 * presence.MAX_UNANSWERED_CHECKS * presence.CHECK_INTERVAL_S)
                assert await subscribers() == 1, "it is kept as long as the server answers"
                for link in proxy.links:
                    link.stall()

            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(forgotten)
                    with pytest.raises(RedisConnectionError, match="does not confirm"):
                        await stay_subscribed(through_proxy, channel)
