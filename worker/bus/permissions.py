"""Permissions: whether the Redis user may run every command and use every key of a worker.

Each command is run on temporary keys. A script creates them together with their expiry, so that
none stays if the connection is lost in between. A script that only reads their types names the
worker's keys.
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

PROBE_TTL_S = 60
"""Time after which the temporary keys expire, if they are not removed."""

MAX_NAMED_COMMANDS = 5
"""Maximum number of unknown commands that a message names."""

_TYPE_SCRIPT = "#!lua flags=allow-oom\nreturn redis.call('TYPE', KEYS[1])"
_CREATE_SCRIPT = """#!lua flags=allow-oom
redis.call('XADD', KEYS[1], '1-1', 'probe', '')
redis.call('SADD', KEYS[2], 'probe')
redis.call('ZADD', KEYS[3], 1, 'probe')
redis.call('HSET', KEYS[4], 'probe', '')
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[1]) end
"""


class MissingPermissions(msgspec.Struct, frozen=True):
    """Denied commands and keys, and what the server lacks; all empty if nothing is missing."""

    commands: tuple[str, ...]
    keys: tuple[str, ...]
    unknown: tuple[str, ...]
    """Commands that the server does not have."""
    errors: tuple[str, ...]
    """Other errors. Each may be a consequence of an earlier one, such as a missing group."""
    waits: bool
    """Whether some of these errors end by themselves: Redis is full, or fails over."""
    prefix: str

    def __bool__(self) -> bool:
        return bool(self.commands or self.keys or self.unknown or self.errors)

    @property
    def lasting(self) -> bool:
        """Whether something is missing until an operator fixes it."""
        known = self.commands or self.keys or self.unknown
        return bool(known) or (bool(self.errors) and not self.waits)

    def __str__(self) -> str:
        advice = []
        if self.commands:
            advice.append(f"grant this user, on keys {self.prefix}:*: {', '.join(self.commands)}")
        if self.keys:
            advice.append(f"grant this user the keys {' '.join(f'~{key}' for key in self.keys)}")
        if self.unknown:
            named = ", ".join(self.unknown[:MAX_NAMED_COMMANDS])
            rest = len(self.unknown) - MAX_NAMED_COMMANDS
            more = f" and {rest} more" if rest > 0 else ""
            advice.append(f"the server has no {named}{more}: {fitness.NEEDS_ALL}")
        return "; ".join(advice or self.errors[:1])


async def find_missing(redis: Redis, keys: Keys) -> MissingPermissions:
    """Run every command and use every key that a worker needs.

    Raises redis-py's errors during an outage, and ReadOnlyError if the server is a replica.
    """
    lane = f"{keys.prefix}:{{0}}:"
    stream = f"{lane}check:{uuid4().hex}"
    commands: list[str] = []
    denied: list[str] = []
    unknown: list[str] = []
    errors: list[str] = []
    waits = False
    kinds = {keys.sessions: "stream", keys.lost: "zset"}
    kinds |= {keys.gate: "zset", keys.gate_holders: "hash"}
    probes = [(f"{lane}*", command) for command in _probe_commands(stream)]
    own = (
        *(keys.sessions, keys.lanes, keys.dead, keys.workers),
        *(keys.gate, keys.gate_holders, keys.sweep, keys.lost, keys.search),
    )
    probes += [(key, ("EVALSHA", _sha(_TYPE_SCRIPT), 1, key)) for key in own]
    await _reject_replica(redis, stream)
    creation = _creation_commands(stream)
    async with redis.pipeline(transaction=False) as pipe:
        for command in (*creation, *(command for _, command in probes)):
            pipe.execute_command(*command)
        replies = await pipe.execute(raise_on_error=False)
    # The probes repeat each command of the creation, and so report its errors by name.
    for (key, command), reply in zip(probes, replies[len(creation) :], strict=True):
        if isinstance(reply, NoPermissionError):
            if denies_command(reply):
                commands.append(str(command[0]))
            else:
                denied.append(key)
        elif isinstance(reply, ResponseError) and fitness.is_unknown_command(reply):
            unknown.append(str(command[0]))
        elif isinstance(reply, ResponseError):
            elsewhere = isinstance(reply, AskError)  # also MOVED: the client does not redirect
            waits |= is_outage(reply) and not fitness.lacks(reply) and not elsewhere
            errors.append(f"{command[0]}: {describe(reply)}")
        elif isinstance(reply, RedisError):
            raise reply
        elif key in kinds and (kind := reply.decode("ascii", "replace")) not in {
            "none",
            kinds[key],
        }:
            errors.append(describe(fitness.KeyTaken(key, kind)))
    return MissingPermissions(
        commands=tuple(dict.fromkeys(commands)),
        keys=tuple(dict.fromkeys(denied)),
        unknown=tuple(dict.fromkeys(unknown)),
        errors=tuple(errors),
        waits=waits,
        prefix=keys.prefix,
    )


async def unfitness(redis: Redis, keys: Keys) -> str | None:
    """Return why no worker can use this Redis, and what to do; None if it is fit.

    Raises redis-py's errors during an outage.
    """
    reasons = (server.fault for server in await fitness.servers(redis))
    if reason := next(filter(None, reasons), None):
        return reason
    missing = await find_missing(redis, keys)
    return str(missing) if missing.lasting else None


async def _reject_replica(redis: Redis, key: str) -> None:
    """Raise ReadOnlyError on a replica.

    The client closes its connection to a replica, which would break a pipeline.
    """
    try:
        await redis.unlink(key)
    except ReadOnlyError:
        raise
    except ResponseError:
        pass  # the pipeline repeats the command and reports the error


def _temporary_keys(stream: str) -> tuple[str, str, str, str]:
    return stream, f"{stream}:set", f"{stream}:sorted", f"{stream}:hash"


def _creation_commands(stream: str) -> tuple[tuple[str | int, ...], ...]:
    """Return the commands that create the temporary keys."""
    keys = _temporary_keys(stream)
    return (
        ("SCRIPT LOAD", _CREATE_SCRIPT),
        ("EVALSHA", _sha(_CREATE_SCRIPT), len(keys), *keys, PROBE_TTL_S),
    )


def _probe_commands(stream: str) -> Iterator[tuple[str | int, ...]]:
    """Yield each command that a worker or its scripts run. The last one removes the keys."""
    _, members, scores, fields = keys = _temporary_keys(stream)
    yield "XADD", stream, "1-2", "probe", ""
    yield "EXPIRE", stream, PROBE_TTL_S
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
    yield "SCRIPT LOAD", _TYPE_SCRIPT
    yield "EVALSHA", _sha(_TYPE_SCRIPT), 1, stream
    yield ("TIME",)
    yield "SCAN", 0, "MATCH", stream, "COUNT", 1
    yield "SADD", members, "probe"
    yield "ZADD", scores, 1, "probe"
    yield "ZRANK", scores, "probe"
    yield "ZRANGE", scores, 0, -1
    yield "ZREM", scores, "probe"
    yield "HSET", fields, "probe", ""
    yield "HGET", fields, "probe"
    yield "HMGET", fields, "probe"
    yield "HGETALL", fields
    yield "HDEL", fields, "probe"
    yield "SET", stream, "probe", "EX", PROBE_TTL_S
    yield "UNLINK", *keys


def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
