"""A producer appends everything, or stops when its session is over."""

from collections.abc import Mapping

import pytest

from schemas import Keys
from tests.simulation.fleet.producers import FleetProducer, Refusal
from tests.simulation.fleet.redis_hosts import RedisHosts
from tests.simulation.fleet.test_checkers import SESSION
from tests.simulation.virtual.world import World

KEYS = Keys()
AUDIO = KEYS.audio("0", "call-0")
TOMBSTONE_AFTER = 3


@pytest.mark.parametrize("over", [False, True])
def test_producer_stops_when_its_session_is_over(over: bool) -> None:
    world = World("producers")
    redis = RedisHosts(world, 1, world.rng)
    redis.start()
    replies = list[bytes | Refusal]()

    def append(key: str, fields: Mapping[str, bytes | str]) -> bytes | Refusal:
        if over and len(replies) == TOMBSTONE_AFTER:
            redis.command("SET", AUDIO, "ended")
        replies.append(redis.append(key, fields))
        return replies[-1]

    producer = FleetProducer(SESSION, KEYS, append)
    world.run(producer.run, limit_s=60.0)
    assert (producer.sent.complete, producer.sent.over) == (not over, over)
    refused = [reply for reply in replies if isinstance(reply, Refusal)]
    assert refused == ([Refusal.OVER] if over else [])
