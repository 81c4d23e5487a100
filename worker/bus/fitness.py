"""Fitness: whether a server is one that a worker can work with, and what to do if it is not.

Errors that say so are waited out like an outage, for an operator may mend the server. They are no
outage that ends by itself, so they carry advice.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from redis import exceptions
from redis.asyncio import Redis

from worker.bus.client.cluster import ClusterClient

OLDEST = (7, 0)
"""Oldest version of Redis; every Valkey is newer."""

_RUN_OLDEST = "run Redis 7.0 or later, or Valkey"
NEEDS_ALL = f"{_RUN_OLDEST}, with none of its commands renamed or disabled"
LINE_CHARACTERS = 240
"""Of an error: what is longer is a lecture, of which the first sentence will do."""

_VERSION_CHARACTERS = 40
"""Of a version, shown at most."""

_LACKS = (  # what an error says, and what to do about it
    (r"unknown command", NEEDS_ALL),
    (r"unknown (?:or invalid )?subcommand", NEEDS_ALL),
    (r"compiling script|unexpected symbol near '#'|unexpected flag in script", _RUN_OLDEST),
    (r"cluster support disabled", "it is no node of a cluster: begin the URL with redis://"),
    (r"DB index is out of range|invalid DB index", "name a database it has: redis://HOST:PORT/0"),
    (r"SELECT is not allowed in cluster mode", "a cluster has database 0 only: redis+cluster://"),
    (r"protected mode", "set a password there, and name it in the URL; or turn protected-mode off"),
)
_OUTAGES = {  # by their first word; they end by themselves, or once an operator acts
    "BUSY": "wait for the script, or end it there: SCRIPT KILL",
    "MASTERDOWN": "it is a replica whose master is away: name the master, or sentinels",
    "MISCONF": "let it write to its disk again: the log of that server says what is wrong",
    "NOREPLICAS": "connect its replicas again, or lower min-replicas-to-write",
}
_NO_REDIS = (
    "what answers there is no Redis: see to host and port, and to rediss:// where it has TLS"
)
_OF_CLUSTER = "it is a node of a cluster: begin the URL with redis+cluster://"


class KeyTaken(exceptions.ResponseError):
    """Another program has a key that all sessions need."""

    def __init__(self, key: str, kind: str) -> None:
        super().__init__(f"another program has the key {key}, a {kind}")


async def reraise_taken(
    error: exceptions.ResponseError, redis: Redis, kinds: Mapping[str, str]
) -> None:
    """Raise `KeyTaken` if `error` says that a key has another type than it should.

    `kinds` are the types of all keys of the command. Raises `TryAgainError` if the key is free
    by now.
    """
    if "WRONGTYPE" not in str(error):
        return
    for key, kind in kinds.items():
        reply: Any = await redis.type(key)
        found = reply.decode("ascii", "replace")
        if found not in {"none", kind}:
            raise KeyTaken(key, found) from error
    raise exceptions.TryAgainError(str(error)) from error


def is_unknown_command(error: BaseException) -> bool:
    """Say whether the server has not this command, or not by this name."""
    return re.match(r"unknown command\b", str(error), re.IGNORECASE) is not None


def lacks(error: BaseException) -> bool:
    """Say whether a server is not what a worker needs, until an operator changes that."""
    if isinstance(error, exceptions.InvalidResponse | KeyTaken):
        return True
    return type(error) is exceptions.ResponseError and _advice(str(error)) is not None


def advice(error: BaseException) -> str | None:
    """Say what to do about an error; None where nothing follows from it."""
    if isinstance(error, exceptions.InvalidResponse):
        return _NO_REDIS
    if isinstance(error, KeyTaken):
        return "remove it, or set TURNBUS_PREFIX"
    if isinstance(error, exceptions.AskError | exceptions.ClusterCrossSlotError):  # or MOVED
        return _OF_CLUSTER
    if isinstance(error, exceptions.ReadOnlyError):
        return "it is a replica: name its master, or sentinels that know it"
    if isinstance(error, exceptions.OutOfMemoryError):
        return "raise its maxmemory, or make room"
    if isinstance(error, exceptions.AuthenticationError):
        return "see to user and password in the URL"
    if isinstance(error, exceptions.ConnectionError) and "max number of clients" in str(error):
        return "raise maxclients there; a worker has up to 32 connections"
    if isinstance(error, exceptions.ResponseError):
        return _advice(str(error)) or _OUTAGES.get(str(error).partition(" ")[0])
    return None


def _advice(said: str) -> str | None:
    found = (what for pattern, what in _LACKS if re.search(pattern, said, re.IGNORECASE))
    return next(found, None)


def in_words(error: BaseException) -> str:
    """Return what an error says, in a line: without the arguments of a command, or a lecture."""
    said = str(error)
    if unknown := re.match(r"unknown command ['`]?(\w+)", said, re.IGNORECASE):
        return f"unknown command {unknown[1]}"
    line = re.split(r"[\r\n]", said, maxsplit=1)[0]
    return line if len(line) <= LINE_CHARACTERS else line.partition(". ")[0][:LINE_CHARACTERS]


class Server(msgspec.Struct, frozen=True):
    """What a server says of itself."""

    name: str
    version: tuple[int, ...] | None
    """None where it says none that can be read."""
    shown: str
    """Its name and version, for people."""
    mode: str
    maxmemory_policy: str

    @classmethod
    def read(cls, about: dict[str, Any]) -> "Server":
        """Read the reply to INFO, whatever is in it."""
        names = {"valkey_version": "Valkey", "dragonfly_version": "Dragonfly"}
        name = next((name for field, name in names.items() if field in about), "Redis")
        said = str(about.get("valkey_version", about.get("redis_version", "")))
        found = re.match(r"(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?", said)
        version = tuple(int(part or 0) for part in found.groups()) if found else None
        shown = "".join(c for c in said if c.isprintable())[:_VERSION_CHARACTERS]
        return cls(
            name,
            version,
            f"{name} {shown}" if shown else f"{name} of an unknown version",
            str(about.get("redis_mode", about.get("server_mode", ""))),
            str(about.get("maxmemory_policy", "unknown")),
        )

    @property
    def fault(self) -> str | None:
        """Why no worker can work with it, and what to do; None if nothing is known against it."""
        if self.mode == "sentinel":
            return (
                "it is a sentinel: begin the URL with redis+sentinel://, and end it with /SERVICE"
            )
        if self.version is not None and self.version < OLDEST:
            return f"{self.shown} is too old; {_RUN_OLDEST}"
        return None


async def servers(redis: Redis) -> list[Server]:
    """Return what each master says of itself; nothing where this user may not ask.

    Raises what Redis raises while it is away, and InvalidResponse of what is no Redis.
    """
    masters = await redis.masters() if isinstance(redis, ClusterClient) else [redis]
    found = []
    for master in masters:
        try:
            found.append(Server.read(await master.info()))
        except exceptions.ResponseError as error:
            if not isinstance(error, exceptions.NoPermissionError) and not lacks(error):
                raise
        except (AttributeError, TypeError, ValueError) as error:  # no text of lines
            raise exceptions.InvalidResponse(f"INFO cannot be read: {error}") from error
    return found
