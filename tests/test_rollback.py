"""A Redis that lost its tail: a failover to a replica that was behind, or a crash before fsync."""

from itertools import count

from redis.asyncio import Redis

from schemas.turns import AudioGap, TurnEnd
from tests.stage import PCM16, Stage, check_order, words
from worker.local.engines.script import hush, say

CHUNK = 3_200


async def test_events_and_position_roll_back_together(stage: Stage, redis: Redis) -> None:
    numbers = count()
    keys = [
        f"{stage.prefix}:{{0}}:turns",
        *(f"{stage.prefix}:{{0}}:{kind}:call-1" for kind in ("state", "audio")),
    ]

    async def play(word: int) -> None:
        sound = say([word], PCM16) + hush(700, PCM16)
        for at in range(0, len(sound), CHUNK):
            chunk = sound[at : at + CHUNK]
            await stage.append("call-1", audio=chunk, seq=str(next(numbers)), src="a")

    async with stage.worker():
        await stage.announce("call-1")
        await play(0)
        await stage.until("call-1", TurnEnd)
        async with redis.pipeline(transaction=True) as pipe:
            for key in keys:
                pipe.dump(key)
            dumps = await pipe.execute()
        await play(1)
        await stage.until("call-1", TurnEnd, count=2)
        async with redis.pipeline(transaction=True) as pipe:
            for key, dump in zip(keys, dumps, strict=True):
                pipe.restore(key, 0, dump, replace=True)
            await pipe.execute()
        await play(2)
        await stage.append("call-1", end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [0, 2], "what was appended in the tail is lost with it"
    (gap,) = [event for event in events if isinstance(event, AudioGap)]
    assert (gap.missing_ms, gap.reason) == (900, "producer")
