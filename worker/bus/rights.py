"""Rights: whether the Redis user may do all that a worker does, asked by doing it.

The commands are run once on a key of our own that is gone afterwards; the worker's keys are only
named, by a script that leaves them alone.
"""

import hashlib
from collections.abc import Iterator
from uuid import uuid4

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from schemas.keys import Keys
from worker.bus.connection import describe, is_about_a_command

TTL_S = 60
_SCRIPT = "#!lua flags=allow-oom\nreturn redis.call('TYPE', KEYS[1])"
_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class Missing(msgspec.Struct, frozen=True):
    """What the user may not do; all empty if it may do everything."""

    commands: tuple[str, ...]
    keys: tuple[str, ...]
    faults: tuple[str, ...]
    """Other errors; each may follow from what is before it: no group where none could be made."""
    prefix: str

    def __str__(self) -> str:
        asked = []
        if self.commands:
            asked.append(f"grant this user, on keys {self.prefix}:*: {', '.join(self.commands)}")
        if self.keys:
            asked.append(f"grant this user the keys {' '.join(f'~{key}' for key in self.keys)}")
        return "; ".join(asked or self.faults[:1])


async def missing_rights(redis: Redis, keys: Keys) -> Missing:
    """Try everything a worker needs. Raises what Redis raises while it is away."""
    stream = f"{keys.prefix}:{{0}}:check:{uuid4().hex}"
    commands: list[str] = []
    denied: list[str] = []
    faults: list[str] = []
    asked = [*_commands(stream), *_own(keys)]
    async with redis.pipeline(transaction=False) as pipe:
        for _, command in asked:
            pipe.execute_command(*command)
        replies = await pipe.execute(raise_on_error=False)
    for (key, command), reply in zip(asked, replies, strict=True):
        if isinstance(reply, NoPermissionError):
            if is_about_a_command(reply):
                commands.append(str(command[0]))
            else:
                denied.append(key)
        elif isinstance(reply, ResponseError):
            faults.append(f"{command[0]}: {describe(reply)}")
        elif isinstance(reply, RedisError):
            raise reply
    return Missing(
        tuple(dict.fromkeys(commands)), tuple(dict.fromkeys(denied)), tuple(faults), keys.prefix
    )


def _own(keys: Keys) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Name every key that is no session's."""
    own = (
        *(keys.sessions, keys.lanes, keys.dead, keys.workers),
        *(keys.gate, keys.gate_holders, keys.sweep, keys.lost, keys.search),
    )
    return ((key, ("EVALSHA", _SHA, 1, key)) for key in own)


def _commands(stream: str) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Run each command a worker sends, or runs in its scripts, the keys' removal last."""
    lane = f"{stream.partition('}')[0]}}}:*"
    return ((lane, command) for command in _probes(stream, f"{stream}:value"))


def _probes(stream: str, value: str) -> Iterator[tuple[str | int, ...]]:
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
