"""Faults of Redis and its connections. Each returns whether it found a target."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any, Final

import anyio
from redis.exceptions import RedisError

from schemas.keys import GROUP
from tests.chaos.target import FaultTarget
from worker.bench.proxy import DroppedReply
from worker.bus import scripts
from worker.bus.inspection import Announced, announced

_MARKS: Final = (
    *(script.sha.encode() for script in (scripts.COMMIT, scripts.COMMIT, scripts.COMMIT)),
    scripts.CLAIM.sha.encode(),
    scripts.HEARTBEAT.sha.encode(),
    scripts.TAKE_OVER.sha.encode(),
    scripts.RELEASE.sha.encode(),
    b"XREADGROUP",
    b"XACK",
)
"""Requests whose reply may be dropped: one of each kind, with more weight on commits."""

_SUCH_A_REQUEST_S: Final = 5.0
"""Timeout for a request whose reply is to be dropped."""

_PUT_BACK_S: Final = 60.0
"""Timeout for workers to restore deleted entries."""


async def away(target: FaultTarget, seconds: float) -> bool:
    """Kill Redis with SIGKILL, and restart it after `seconds`."""
    async with target.lock("redis"):
        target.note(f"Redis away for {seconds:.1f} s")
        down = time.time_ns() // 1_000_000
        await target.harness.server.kill()
        await anyio.sleep(seconds)
        await target.harness.server.restart()
        target.outages_ms.append((down, time.time_ns() // 1_000_000))
    return True


async def restart(target: FaultTarget, _: Random) -> bool:
    """Kill Redis with SIGKILL, and restart it at once."""
    return await away(target, 0.0)


async def outage(target: FaultTarget, rng: Random) -> bool:
    """Stop Redis for longer than the lease."""
    return await away(target, rng.uniform(1.2, 2.5) * target.lease_s)


async def full(target: FaultTarget, rng: Random) -> bool:
    """Make Redis exceed its maxmemory for a while."""
    harness = target.harness
    seconds = rng.uniform(0.2, 2.0)
    async with target.lock("redis"):
        target.note("Redis full")
        await harness.retry(lambda: harness.redis.config_set("maxmemory", 1))
        try:
            await anyio.sleep(seconds)
        finally:
            await harness.retry(lambda: harness.redis.config_set("maxmemory", 0))
    return True


async def flush_scripts(target: FaultTarget, _: Random) -> bool:
    """Flush all scripts of Redis."""
    target.note("scripts forgotten")
    await target.harness.retry(target.harness.redis.script_flush)
    return True


async def cut(target: FaultTarget, rng: Random) -> bool:
    """Cut one worker's connections."""
    async with target.worker(rng) as (slot, _):
        target.note(f"cut {slot.name} from Redis")
        slot.redis.cut_all()
    return True


async def kill_clients(target: FaultTarget, _: Random) -> bool:
    """Cut all connections, including those of producers."""
    harness = target.harness
    target.note("client kill")
    try:
        await harness.redis.client_kill_filter(_type="normal", skipme=True)
    except (RedisError, OSError):
        return False
    return True


async def lose_reply(target: FaultTarget, rng: Random) -> bool:
    """Drop the reply to the next matching request of any worker, with its connection."""
    drop = DroppedReply(rng.choice(_MARKS))
    proxies = [slot.redis for slot in target.harness.fleet.slots]
    for proxy in proxies:
        proxy.dropped_replies.add(drop)
    with anyio.move_on_after(_SUCH_A_REQUEST_S):
        await drop.done.wait()
    for proxy in proxies:
        proxy.dropped_replies.discard(drop)
    return drop.done.is_set()


async def partition(target: FaultTarget, rng: Random) -> bool:
    """Partition a worker from Redis, without closing its connections."""
    seconds, flows = rng.uniform(0.3, 3.0) * target.lease_s, rng.random() < 0.5
    async with target.worker(rng) as (slot, _):
        target.note(f"part {slot.name} from Redis for {seconds:.1f} s")
        await target.stall(slot.redis.links, seconds, flows=flows)
    return True


async def destroy_group(target: FaultTarget, _: Random) -> bool:
    """Destroy the consumer group with its pending list."""
    harness = target.harness
    async with target.lock("redis"):
        target.note("group destroyed")
        await harness.retry(lambda: harness.redis.xgroup_destroy(harness.keys.sessions, GROUP))
    return True


async def delete_entry(target: FaultTarget, rng: Random) -> bool:
    """Delete the entry of one live session."""
    return await _delete(target, lambda live: [rng.choice(live)])


async def trim_entries(target: FaultTarget, _: Random) -> bool:
    """Delete the entries of all live sessions, as a trim does."""
    return await _delete(target, lambda live: live)


async def delete_entry_and_kill(target: FaultTarget, rng: Random) -> bool:
    """Delete the entries of a worker's sessions, and kill it before it can restore them."""
    async with target.worker(rng) as (slot, process):
        owned = await target.sessions_of(process)
        with target.harness.fleet.paused(process):
            deleted = await _delete(
                target,
                lambda live: [each for each in live if each.session in owned],
                then=partial(target.harness.fleet.kill, process),
            )
        if deleted:
            target.note(f"killed {process.name}, which ran them")
            await target.harness.fleet.start(slot)
    return deleted


async def _delete(
    target: FaultTarget,
    choose: Callable[[list[Announced]], list[Announced]],
    then: Callable[[], Awaitable[None]] | None = None,
) -> bool:
    """Delete entries of live sessions, call `then`, and wait until they are restored.

    Only claimed entries are deleted: workers cannot restore others.
    """
    harness = target.harness
    async with target.lock("redis"):
        live = await harness.retry(partial(_live, target))
        deleted = choose(live) if live else []
        if not deleted:
            return False
        entries = [each.entry for each in deleted]
        target.note(f"delete {len(entries)} entries")
        await harness.retry(lambda: harness.redis.xdel(harness.keys.sessions, *entries))
        if then is not None:
            await then()
        with anyio.move_on_after(_PUT_BACK_S):
            await harness.retry(partial(_put_back, target, deleted))
    return True


async def _live(target: FaultTarget) -> list[Announced]:
    """Return the entries of all sessions that a worker owns or owned."""
    redis, keys = target.harness.redis, target.harness.keys
    found = [each async for each in announced(redis, keys)]
    async with redis.pipeline(transaction=False) as pipe:
        for each in found:
            pipe.hget(keys.state(each.lane, each.session), "status")
            pipe.xpending_range(keys.sessions, GROUP, each.entry, each.entry, 1)
        replies: Any = await pipe.execute(raise_on_error=False)
    states = zip(found, replies[::2], replies[1::2], strict=True)
    return [
        each for each, status, row in states if status == b"live" and isinstance(row, list) and row
    ]


async def _put_back(target: FaultTarget, deleted: list[Announced]) -> None:
    """Wait until every deleted entry is restored, or its session has ended."""
    redis, keys = target.harness.redis, target.harness.keys
    away = deleted
    while away:
        await anyio.sleep(0.1)
        back = {each.session async for each in announced(redis, keys)}
        away = [
            each
            for each in away
            if each.session not in back
            and await redis.hget(keys.state(each.lane, each.session), "status") == b"live"
        ]
