"""Faults of Redis, and of the way there. Each says whether it broke anything."""

import time
from functools import partial
from random import Random
from typing import Any, Final

import anyio
import msgspec
from redis.exceptions import RedisError, ResponseError

from schemas.keys import GROUP
from schemas.turns import WorkerRecord
from worker.bus import scripts
from worker.bus.connection import patiently
from worker.local.chaos.proxy import Theft
from worker.local.chaos.target import Target

_MARKS: Final = (
    *(script.sha.encode() for script in (scripts.COMMIT, scripts.COMMIT, scripts.COMMIT)),
    scripts.CLAIM.sha.encode(),
    scripts.HEARTBEAT.sha.encode(),
    scripts.ADOPT.sha.encode(),
    scripts.RELEASE.sha.encode(),
    b"XREADGROUP",
    b"XACK",
)
"""Requests whose reply is worth losing: one of each kind, and above all commits."""

_EMPTY: Final = """
local held = {}
for _, row in ipairs(redis.call("XPENDING", KEYS[1], ARGV[1], "-", "+", 10000)) do
  held[row[1]] = row[2]
end
local chosen = {}
for _, entry in ipairs(redis.call("XRANGE", KEYS[1], "-", "+")) do
  for at = 3, #ARGV do
    if held[entry[1]] == ARGV[at] then
      chosen[#chosen + 1] = entry
    end
  end
end
if ARGV[2] == "one" then
  chosen = {chosen[1]}
end
local gone = {}
for _, entry in ipairs(chosen) do
  redis.call("XDEL", KEYS[1], entry[1])
  gone[#gone + 1] = entry[2]
end
return gone
"""
"""Delete entries whose sessions run, and return their fields: one that nobody took yet, nobody
could put back."""

_SUCH_A_REQUEST_S: Final = 5.0
"""How long a request whose reply is to be lost is waited for, until it is tried again."""

_PUT_BACK_S: Final = 60.0
"""How long owners may take to put back what was deleted."""


async def away(target: Target, seconds: float) -> bool:
    """Kill Redis with SIGKILL, and start it again so many seconds later."""
    async with target.hold("redis"):
        target.note(f"Redis away for {seconds:.1f} s")
        down = time.time_ns() // 1_000_000
        await target.rig.server.kill()
        await anyio.sleep(seconds)
        await target.rig.server.restart()
        target.outages_ms.append((down, time.time_ns() // 1_000_000))
    return True


async def restart(target: Target, _: Random) -> bool:
    """Kill Redis with SIGKILL, and start it again at once."""
    return await away(target, 0.0)


async def outage(target: Target, rng: Random) -> bool:
    """Keep Redis away for longer than the lease."""
    return await away(target, rng.uniform(1.2, 2.5) * target.lease_s)


async def full(target: Target, rng: Random) -> bool:
    """Let Redis reach its maxmemory for a while."""
    rig = target.rig
    seconds = rng.uniform(0.2, 2.0)
    async with target.hold("redis"):
        target.note("Redis full")
        await patiently(rig.health, lambda: rig.redis.config_set("maxmemory", 1))
        try:
            await anyio.sleep(seconds)
        finally:
            await patiently(rig.health, lambda: rig.redis.config_set("maxmemory", 0))
    return True


async def flush_scripts(target: Target, _: Random) -> bool:
    """Make Redis forget all scripts."""
    target.note("scripts forgotten")
    await patiently(target.rig.health, target.rig.redis.script_flush)
    return True


async def cut(target: Target, rng: Random) -> bool:
    """Cut one worker's connections."""
    async with target.worker(rng) as (slot, _):
        target.note(f"cut {slot.name} from Redis")
        slot.redis.cut_all()
    return True


async def kill_clients(target: Target, _: Random) -> bool:
    """Cut everybody's connections, producers' too."""
    rig = target.rig
    target.note("client kill")
    try:
        await rig.redis.client_kill_filter(_type="normal", skipme=True)
    except (RedisError, OSError):
        return False
    return True


async def lose_reply(target: Target, rng: Random) -> bool:
    """Carry a request out, whoever makes it first, and lose its reply with the connection."""
    theft = Theft(rng.choice(_MARKS))
    ways = [slot.redis for slot in target.rig.fleet.slots]
    for way in ways:
        way.thefts.add(theft)
    with anyio.move_on_after(_SUCH_A_REQUEST_S):
        await theft.done.wait()
    for way in ways:
        way.thefts.discard(theft)
    return theft.done.is_set()


async def partition(target: Target, rng: Random) -> bool:
    """Let a worker reach everything but Redis, and that without a word."""
    seconds, flows = rng.uniform(0.3, 3.0) * target.lease_s, rng.random() < 0.5
    async with target.worker(rng) as (slot, _):
        target.note(f"part {slot.name} from Redis for {seconds:.1f} s")
        await target.stall(slot.redis.links, seconds, flows=flows)
    return True


async def destroy_group(target: Target, _: Random) -> bool:
    """Destroy the group, pending list and all."""
    rig = target.rig
    target.note("group destroyed")
    await patiently(rig.health, lambda: rig.redis.xgroup_destroy(rig.keys.sessions, GROUP))
    return True


async def delete_entry(target: Target, _: Random) -> bool:
    """Delete the entry of one live session."""
    return await delete(target, "one")


async def trim_entries(target: Target, _: Random) -> bool:
    """Delete the entries of all live sessions, as a trim would."""
    return await delete(target, "all")


async def delete(target: Target, how: str) -> bool:
    """Delete entries of live sessions, then leave their owners alone until they are back."""
    rig = target.rig
    async with target.hold("redis", *(slot.name for slot in rig.fleet.slots)):
        await anyio.sleep(target.lease_s + 1.0)  # who was paused or cut is well again
        records: Any = await patiently(rig.health, lambda: rig.redis.hvals(rig.keys.workers))
        pids = {life.pid for slot in rig.fleet.slots for life in slot.lives}
        live = [
            record.consumer
            for record in (msgspec.json.decode(raw, type=WorkerRecord) for raw in records)
            if record.pid in pids
        ]
        try:
            gone: Any = await rig.redis.eval(_EMPTY, 1, rig.keys.sessions, GROUP, how, *live)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return False
        target.note(f"{len(gone)} entries deleted")
        deleted = [dict(zip(fields[::2], fields[1::2], strict=True)) for fields in gone]
        with anyio.move_on_after(_PUT_BACK_S):
            await patiently(rig.health, partial(_put_back, target, deleted))
    return bool(gone)


async def _put_back(target: Target, deleted: list[dict[bytes, bytes]]) -> None:
    """Wait until every session whose entry was deleted has one again, or has ended."""
    redis, keys = target.rig.redis, target.rig.keys
    away = {(fields.get(b"lane", b"0").decode(), fields[b"session"].decode()) for fields in deleted}
    while away:
        await anyio.sleep(0.1)
        rows: Any = await redis.xrange(keys.sessions)
        back = {fields[b"session"].decode() for _, fields in rows}
        away = {
            (lane, session)
            for lane, session in away
            if session not in back
            and await redis.hget(keys.state(lane, session), "status") == b"live"
        }
