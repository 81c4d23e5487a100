"""Error replies of Redis, and which of them the worker retries."""

from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from schemas.turns import TurnUpdate
from tests.support.acl import GuardedRedis
from tests.support.harness import PCM16, Harness, check_order, words
from tests.support.polling import eventually, no_longer
from worker.bus.client.connection import is_outage
from worker.local.emulator.engines.script import synthesize_words
from worker.local.emulator.server import TurnsServer


@pytest.mark.parametrize(
    ("reply", "outage"),
    [
        ("LOADING Redis is loading the dataset in memory", True),
        ("READONLY You can't write against a read only replica.", True),
        ("MISCONF Errors writing to the AOF file: No space left on device", True),
        ("BUSY Redis is busy running a script.", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("UNBLOCKED force unblock from blocking operation, instance state changed", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        ("NOAUTH Authentication required.", True),
        ("WRONGPASS invalid username-password pair or user is disabled.", True),
        ("CLUSTERDOWN The cluster is down", True),
        ("TRYAGAIN Multiple keys request during rehashing of slot", True),
        ("MOVED 3999 127.0.0.1:6381", True),
        ("ASK 3999 127.0.0.1:6381", True),
        ("NOPERM User worker has no permissions to run the 'xadd' command", True),
        ("NOPERM No permissions to access a key", False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
        ("NOGROUP No such key 'stt:sessions' or consumer group 'workers'", False),
        ("ERR max number of clients reached", True),
        ("ERR max number of clients + cluster connections reached", True),
        ("ERR syntax error", False),
    ],
)
async def test_error_reply_is_retried_or_raised(redis: Redis, reply: str, outage: bool) -> None:
    with pytest.raises(RedisError) as error:
        await redis.eval("return redis.error_reply(ARGV[1])", 0, reply)
    assert is_outage(error.value) is outage


async def test_disk_write_errors_are_waited_out(stt: TurnsServer) -> None:
    async with (
        GuardedRedis.start(config={"save": "3600 1"}) as server,
        Harness.open(server.url, "stt", stt.url) as harness,
        harness.worker() as worker,
    ):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1, 2], PCM16), end=False)
        await harness.until("call-1", TurnUpdate, 2)
        where: Any = await harness.redis.config_get("dir", "dbfilename")
        in_the_way = anyio.Path(Path(where["dir"], where["dbfilename"]))
        await in_the_way.mkdir()
        await harness.redis.bgsave()
        await eventually(lambda: "MISCONF" in (worker.health.outage or ""), "the error to be met")
        await in_the_way.rmdir()
        await harness.redis.save()
        await no_longer(lambda: worker.health.outage, "the fault")
        await harness.play("call-1", synthesize_words([3], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2, 3]
