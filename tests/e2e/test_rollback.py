"""Redis loses its latest writes: failover to a lagging replica, or a crash before fsync."""

from itertools import count

from redis.asyncio import Redis

from schemas.turns import AudioGap, TurnEnd
from tests.support.harness import PCM16, Harness, check_order, words
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words

CHUNK = 3_200


async def test_events_and_position_roll_back_together(harness: Harness, redis: Redis) -> None:
    numbers = count()
    keys = [
        f"{harness.prefix}:{{0}}:turns",
        *(f"{harness.prefix}:{{0}}:{kind}:call-1" for kind in ("state", "audio")),
    ]

    async def play(word: int) -> None:
        sound = synthesize_words([word], PCM16) + synthesize_silence(700, PCM16)
        for at in range(0, len(sound), CHUNK):
            chunk = sound[at : at + CHUNK]
            await harness.append("call-1", audio=chunk, seq=str(next(numbers)), src="a")

    async with harness.worker():
        await harness.announce("call-1")
        await play(0)
        await harness.until("call-1", TurnEnd)
        async with redis.pipeline(transaction=True) as pipe:
            for key in keys:
                pipe.dump(key)
            dumps = await pipe.execute()
        await play(1)
        await harness.until("call-1", TurnEnd, count=2)
        async with redis.pipeline(transaction=True) as pipe:
            for key, dump in zip(keys, dumps, strict=True):
                pipe.restore(key, 0, dump, replace=True)
            await pipe.execute()
        await play(2)
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [0, 2], "what was appended in the tail is lost with it"
    (gap,) = [event for event in events if isinstance(event, AudioGap)]
    assert (gap.missing_ms, gap.reason) == (900, "producer")
