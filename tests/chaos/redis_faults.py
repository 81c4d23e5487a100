"""Faults of Redis and its connections. Each returns whether it found a target."""

from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any, Final

import anyio
from redis.exceptions import RedisError

from schemas.keys import GROUP
from tests.chaos.harness import ChaosHarness, now_ms, stall_links
from worker.bench.proxy import DroppedReply
from worker.bus import scripts
from worker.bus.inspection import Announced, announced

_MARKS: Final = (
    *(script.sha.encode() for script in (scripts.commit, scripts.commit, scripts.commit)),
    scripts.claim.sha.encode(),
    scripts.heartbeat.sha.encode(),
    scripts.take_over.sha.encode(),
    scripts.release.sha.encode(),
    b"XREADGROUP",
    b"XACK",
)
"""Requests whose reply may be dropped: one of each kind, with more weight on commits."""

_SUCH_A_REQUEST_S: Final = 5.0
"""Timeout for a request whose reply is to be dropped."""

_PUT_BACK_S: Final = 60.0
"""Timeout for workers to restore deleted entries."""


async def away(harness: ChaosHarness, seconds: float) -> bool:
    """Kill Redis with SIGKILL, and restart it after `seconds`."""
    async with harness.lock("redis"):
        harness.note(f"Redis away for {seconds:.1f} s")
        down = now_ms()
        await harness.server.kill()
        await anyio.sleep(seconds)
        await harness.server.restart()
        harness.outages_ms.append((down, now_ms()))
    return True


async def restart(harness: ChaosHarness, _: Random) -> bool:
    """Kill Redis with SIGKILL, and restart it at once."""
    return await away(harness, 0.0)


async def outage(harness: ChaosHarness, rng: Random) -> bool:
    """Stop Redis for longer than the lease."""
    return await away(harness, rng.uniform(1.2, 2.5) * harness.lease_s)


async def full(harness: ChaosHarness, rng: Random) -> bool:
    """Make Redis exceed its maxmemory for a while."""
    seconds = rng.uniform(0.2, 2.0)
    async with harness.lock("redis"):
        harness.note("Redis full")
        await harness.retry(lambda: harness.redis.config_set("maxmemory", 1))
        try:
            await anyio.sleep(seconds)
        finally:
            await harness.retry(lambda: harness.redis.config_set("maxmemory", 0))
    return True


async def flush_scripts(harness: ChaosHarness, _: Random) -> bool:
    """Flush all scripts of Redis."""
    harness.note("scripts forgotten")
    await harness.retry(harness.redis.script_flush)
    return True


async def cut(harness: ChaosHarness, rng: Random) -> bool:
    """Cut one worker's connections."""
    async with harness.worker(rng) as (slot, _):
        harness.note(f"cut {slot.name} from Redis")
        slot.redis.cut_all()
    return True


async def kill_clients(harness: ChaosHarness, _: Random) -> bool:
    """Cut all connections, including those of producers."""
    harness.note("client kill")
    try:
        await harness.redis.client_kill_filter(_type="normal", skipme=True)
    except (RedisError, OSError):
        return False
    return True


async def lose_reply(harness: ChaosHarness, rng: Random) -> bool:
    """Drop the reply to the next matching request of any worker, with its connection."""
    drop = DroppedReply(rng.choice(_MARKS))
    proxies = [slot.redis for slot in harness.fleet.slots]
    for proxy in proxies:
        proxy.dropped_replies.add(drop)
    with anyio.move_on_after(_SUCH_A_REQUEST_S):
        await drop.done.wait()
    for proxy in proxies:
        proxy.dropped_replies.discard(drop)
    return drop.done.is_set()


async def partition(harness: ChaosHarness, rng: Random) -> bool:
    """Partition a worker from Redis, without closing its connections."""
    seconds, flows = rng.uniform(0.3, 3.0) * harness.lease_s, rng.random() < 0.5
    async with harness.worker(rng) as (slot, _):
        harness.note(f"part {slot.name} from Redis for {seconds:.1f} s")
        await stall_links(slot.redis.links, seconds, flows=flows)
    return True


async def destroy_group(harness: ChaosHarness, _: Random) -> bool:
    """Destroy the consumer group with its pending list."""
    async with harness.lock("redis"):
        harness.note("group destroyed")
        await harness.retry(lambda: harness.redis.xgroup_destroy(harness.keys.sessions, GROUP))
    return True


async def delete_entry(harness: ChaosHarness, rng: Random) -> bool:
    """Delete the entry of one live session."""
    return await _delete(harness, lambda live: [rng.choice(live)])


async def trim_entries(harness: ChaosHarness, _: Random) -> bool:
    """Delete the entries of all live sessions, as a trim does."""
    return await _delete(harness, lambda live: live)


async def delete_entry_and_kill(harness: ChaosHarness, rng: Random) -> bool:
    """Delete the entries of a worker's sessions, and kill it before it can restore them."""
    async with harness.worker(rng) as (slot, process):
        owned = await harness.sessions_of(process)
        with harness.fleet.paused(process):
            deleted = await _delete(
                harness,
                lambda live: [each for each in live if each.session in owned],
                then=partial(harness.fleet.kill, process),
            )
        if deleted:
            harness.note(f"killed {process.name}, which ran them")
            await harness.fleet.start(slot)
    return deleted


async def _delete(
    harness: ChaosHarness,
    choose: Callable[[list[Announced]], list[Announced]],
    then: Callable[[], Awaitable[None]] | None = None,
) -> bool:
    """Delete entries of live sessions, call `then`, and wait until they are restored.

    Only claimed entries are deleted: workers cannot restore others.
    """
    async with harness.lock("redis"):
        live = await harness.retry(partial(_live, harness))
        deleted = choose(live) if live else []
        if not deleted:
            return False
        entries = [each.entry_id for each in deleted]
        harness.note(f"delete {len(entries)} entries")
        await harness.retry(lambda: harness.redis.xdel(harness.keys.sessions, *entries))
        if then is not None:
            await then()
        with anyio.move_on_after(_PUT_BACK_S):
            await harness.retry(partial(_put_back, harness, deleted))
    return True


async def _live(harness: ChaosHarness) -> list[Announced]:
    """Return the entries of all sessions that a worker owns or owned."""
    redis, keys = harness.redis, harness.keys
    found = [each async for each in announced(redis, keys)]
    async with redis.pipeline(transaction=False) as pipe:
        for each in found:
            pipe.hget(keys.state(each.lane, each.session), "status")
            pipe.xpending_range(keys.sessions, GROUP, each.entry_id, each.entry_id, 1)
        replies: Any = await pipe.execute(raise_on_error=False)
    states = zip(found, replies[::2], replies[1::2], strict=True)
    return [
        each for each, status, row in states if status == b"live" and isinstance(row, list) and row
    ]


async def _put_back(harness: ChaosHarness, deleted: list[Announced]) -> None:
    """Wait until every deleted entry is restored, or its session has ended."""
    redis, keys = harness.redis, harness.keys
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
