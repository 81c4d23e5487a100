"""Errors that Redis answers with: which of them waiting may cure."""

from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from schemas.turns import TurnUpdate
from tests.stage import PCM16, Stage, check_order, words
from tests.users import GuardedRedis
from tests.waiting import eventually, no_longer
from worker.bus.connection import is_outage
from worker.local.engines.script import say
from worker.local.server.server import TurnsServer


@pytest.mark.parametrize(
    ("said", "outage"),
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
async def test_what_redis_says(redis: Redis, said: str, outage: bool) -> None:
    with pytest.raises(RedisError) as error:
        await redis.eval("return redis.error_reply(ARGV[1])", 0, said)
    assert is_outage(error.value) is outage


async def test_a_disk_that_cannot_be_written_to_is_waited_out(stt: TurnsServer) -> None:
    async with (
        GuardedRedis.start(config={"save": "3600 1"}) as server,
        Stage.open(server.url, "stt", stt.url) as stage,
        stage.worker() as worker,
    ):
        await stage.announce("call-1")
        await stage.play("call-1", say([1, 2], PCM16), end=False)
        await stage.until("call-1", TurnUpdate, 2)
        where: Any = await stage.redis.config_get("dir", "dbfilename")
        in_the_way = anyio.Path(Path(where["dir"], where["dbfilename"]))
        await in_the_way.mkdir()
        await stage.redis.bgsave()
        await eventually(lambda: "MISCONF" in (worker.health.fault or ""), "the fault to be met")
        await in_the_way.rmdir()
        await stage.redis.save()
        await no_longer(lambda: worker.health.fault, "the fault")
        await stage.play("call-1", say([3], PCM16))
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2, 3]
