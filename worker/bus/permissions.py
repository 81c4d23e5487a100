"""Rights: whether the Redis user may do all that a worker does, asked by doing it.

The commands are run once on a key of our own that is gone afterwards; the worker's keys are only
named, by a script that leaves them alone.
"""

import hashlib
from collections.abc import Iterator
from uuid import uuid4

import msgspec
from redis.asyncio import Redis
from redis.exceptions import (
    AskError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from schemas.keys import Keys
from worker.bus import fitness
from worker.bus.client.connection import denies_command, describe, is_outage

TTL_S = 60
COMMANDS_SHOWN = 5
"""Commands that are named where a server has not many."""

_SCRIPT = "#!lua flags=allow-oom\nreturn redis.call('TYPE', KEYS[1])"
_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class MissingPermissions(msgspec.Struct, frozen=True):
    """What the user may not do, or the server cannot; all empty if nothing is missing."""

    commands: tuple[str, ...]
    keys: tuple[str, ...]
    unknown: tuple[str, ...]
    """What the server has not."""
    faults: tuple[str, ...]
    """Other errors; each may follow from what is before it: no group where none could be made."""
    waits: bool
    """Some of those end by themselves: Redis is full, or fails over."""
    prefix: str

    def __bool__(self) -> bool:
        return bool(self.commands or self.keys or self.unknown or self.faults)

    @property
    def lasting(self) -> bool:
        """Whether something is missing until an operator mends it."""
        known = self.commands or self.keys or self.unknown
        return bool(known) or (bool(self.faults) and not self.waits)

    def __str__(self) -> str:
        asked = []
        if self.commands:
            asked.append(f"grant this user, on keys {self.prefix}:*: {', '.join(self.commands)}")
        if self.keys:
            asked.append(f"grant this user the keys {' '.join(f'~{key}' for key in self.keys)}")
        if self.unknown:
            named = ", ".join(self.unknown[:COMMANDS_SHOWN])
            rest = len(self.unknown) - COMMANDS_SHOWN
            more = f" and {rest} more" if rest > 0 else ""
            asked.append(f"the server has no {named}{more}: {fitness.NEEDS_ALL}")
        return "; ".join(asked or self.faults[:1])


async def find_missing(redis: Redis, keys: Keys) -> MissingPermissions:
    """Try everything a worker needs.

    Raises what Redis raises while it is away, and ReadOnlyError of a replica.
    """
    stream = f"{keys.prefix}:{{0}}:check:{uuid4().hex}"
    commands: list[str] = []
    denied: list[str] = []
    unknown: list[str] = []
    faults: list[str] = []
    waits = False
    kinds = {keys.sessions: "stream", keys.lost: "zset"}
    kinds |= {keys.gate: "zset", keys.gate_holders: "hash"}
    asked = [*_commands(stream), *_worker_keys(keys)]
    await _refuse_replica(redis, stream)
    async with redis.pipeline(transaction=False) as pipe:
        for _, command in asked:
            pipe.execute_command(*command)
        replies = await pipe.execute(raise_on_error=False)
    for (key, command), reply in zip(asked, replies, strict=True):
        if isinstance(reply, NoPermissionError):
            if denies_command(reply):
                commands.append(str(command[0]))
            else:
                denied.append(key)
        elif isinstance(reply, ResponseError) and fitness.is_unknown_command(reply):
            unknown.append(str(command[0]))
        elif isinstance(reply, ResponseError):
            waits |= is_outage(reply) and not fitness.lacks(reply) and not _is_elsewhere(reply)
            faults.append(f"{command[0]}: {describe(reply)}")
        elif isinstance(reply, RedisError):
            raise reply
        elif key in kinds and (kind := reply.decode("ascii", "replace")) not in {
            "none",
            kinds[key],
        }:
            faults.append(describe(fitness.KeyTaken(key, kind)))
    return MissingPermissions(
        commands=tuple(dict.fromkeys(commands)),
        keys=tuple(dict.fromkeys(denied)),
        unknown=tuple(dict.fromkeys(unknown)),
        faults=tuple(faults),
        waits=waits,
        prefix=keys.prefix,
    )


async def unfitness(redis: Redis, keys: Keys) -> str | None:
    """Return why no worker can work with this Redis, and what to do; None if it can.

    Raises what Redis raises while it is away.
    """
    faults = (server.fault for server in await fitness.servers(redis))
    if fault := next(filter(None, faults), None):
        return fault
    missing = await find_missing(redis, keys)
    return str(missing) if missing.lasting else None


async def _refuse_replica(redis: Redis, key: str) -> None:
    """Write nothing. A replica refuses that and is left at once, which would cut a pipeline."""
    try:
        await redis.unlink(key)
    except ReadOnlyError:
        raise
    except ResponseError:
        pass  # it is asked again, with the rest


def _is_elsewhere(error: ResponseError) -> bool:
    """Say whether another node of a cluster has the key, and the client does not follow."""
    return isinstance(error, AskError)  # MOVED is one too


def _worker_keys(keys: Keys) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Name every key that is no session's."""
    own = (
        *(keys.sessions, keys.lanes, keys.dead, keys.workers),
        *(keys.gate, keys.gate_holders, keys.sweep, keys.lost, keys.search),
    )
    return ((key, ("EVALSHA", _SHA, 1, key)) for key in own)


def _commands(stream: str) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Run each command a worker sends, or runs in its scripts, the keys' removal last."""
    lane = f"{stream.partition('}')[0]}}}:*"
    return ((lane, command) for command in _probe_commands(stream, f"{stream}:value"))


def _probe_commands(stream: str, value: str) -> Iterator[tuple[str | int, ...]]:
    yield "XADD", stream, "1-1", "probe", ""
    yield "EXPIRE", stream, TTL_S  # should the last be denied
    yield "XGROUP CREATE", stream, "probe", "0"
    yield "XREADGROUP", "GROUP", "probe", "probe", "COUNT", 1, "STREAMS", stream, ">"
    yield "XPENDING", stream, "probe"
    yield "XCLAIM", stream, "probe", "probe", 0, "1-1"
    yield "XINFO STREAM", stream
    yield "XINFO GROUPS", stream
    yield "XINFO CONSUMERS", stream, "probe"
    yield "XACK", stream, "probe", "1-1"
    yield "XGROUP DELCONSUMER", stream, "probe", "probe"
    yield "XREAD", "COUNT", 1, "STREAMS", stream, "0"
    yield "XRANGE", stream, "-", "+", "COUNT", 1
    yield "XLEN", stream
    yield "XDEL", stream, "1-1"
    yield "XTRIM", stream, "MINID", "1-1"
    yield "EXISTS", stream
    yield "TYPE", stream
    yield "SCRIPT LOAD", _SCRIPT
    yield "EVALSHA", _SHA, 1, stream
    yield ("TIME",)
    yield "SCAN", 0, "MATCH", stream, "COUNT", 1
    yield "SET", value, "probe", "EX", TTL_S
    yield "UNLINK", value
    yield "SADD", value, "probe"
    yield "EXPIRE", value, TTL_S
    yield "UNLINK", value
    yield "ZADD", value, 1, "probe"
    yield "EXPIRE", value, TTL_S
    yield "ZRANK", value, "probe"
    yield "ZRANGE", value, 0, -1
    yield "ZREM", value, "probe"
    yield "HSET", value, "probe", ""
    yield "EXPIRE", value, TTL_S
    yield "HGET", value, "probe"
    yield "HMGET", value, "probe"
    yield "HGETALL", value
    yield "HDEL", value, "probe"
    yield "UNLINK", stream
