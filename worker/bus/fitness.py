"""Fitness: whether a worker can use a Redis server, and what to do if it cannot.

A worker waits out an unfit server like an outage, because an operator may fix the server. Such an
outage does not end by itself, so the errors carry advice.
"""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from redis import exceptions
from redis.asyncio import Redis

from worker.bus.client.cluster import ClusterClient

MIN_REDIS_VERSION = (7, 0)
"""Minimum version of Redis. Every version of Valkey is newer."""

_UPGRADE = "run Redis 7.0 or later, or Valkey"
NEEDS_ALL = f"{_UPGRADE}, with none of its commands renamed or disabled"
MAX_LINE_CHARACTERS = 240
"""Maximum length of an error text. A longer text is cut to its first sentence."""

_MAX_VERSION_CHARACTERS = 40
"""Maximum length of a displayed version."""

_LACKS = (  # pattern of the error text, advice
    (r"unknown command", NEEDS_ALL),
    (r"unknown (?:or invalid )?subcommand", NEEDS_ALL),
    (r"compiling script|unexpected symbol near '#'|unexpected flag in script", _UPGRADE),
    (r"cluster support disabled", "it is not a cluster node: begin the URL with redis://"),
    (r"DB index is out of range|invalid DB index", "use an existing one: redis://HOST:PORT/0"),
    (r"SELECT is not allowed in cluster mode", "a cluster has database 0 only: redis+cluster://"),
    (r"protected mode", "set a password there and in the URL, or turn protected-mode off"),
)
_OUTAGES = {  # first word of the error: advice; they end by themselves, or once an operator acts
    "BUSY": "wait for the script, or end it with SCRIPT KILL",
    "MASTERDOWN": "it is a replica and its master is down: name the master, or sentinels",
    "MISCONF": "fix its disk writes; the log of that server gives the reason",
    "NOREPLICAS": "reconnect its replicas, or lower min-replicas-to-write",
}
_NOT_REDIS = "the server is not Redis: check host and port, and use rediss:// if it has TLS"
_IS_CLUSTER = "it is a cluster node: begin the URL with redis+cluster://"


class KeyTaken(exceptions.ResponseError):
    """Another program uses a key that all sessions need."""

    def __init__(self, key: str, kind: str) -> None:
        super().__init__(f"another program has the key {key}, a {kind}")


@asynccontextmanager
async def explain_taken_keys(redis: Redis, kinds: Mapping[str, str]) -> AsyncIterator[None]:
    """Raise `KeyTaken` if a command in the block fails because of a key of an unexpected type.

    `kinds` maps all keys of the command to their types. Raises `TryAgainError` if the key is free
    again.
    """
    try:
        yield
    except exceptions.ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        for key, kind in kinds.items():
            reply: Any = await redis.type(key)
            found = reply.decode("ascii", "replace")
            if found not in {"none", kind}:
                raise KeyTaken(key, found) from error
        raise exceptions.TryAgainError(str(error)) from error


def is_unknown_command(error: BaseException) -> bool:
    """Return whether the server lacks this command, or renamed it."""
    return re.match(r"unknown command\b", str(error), re.IGNORECASE) is not None


def lacks(error: BaseException) -> bool:
    """Return whether the server is unfit for a worker until an operator changes it."""
    if isinstance(error, exceptions.InvalidResponse | KeyTaken):
        return True
    return type(error) is exceptions.ResponseError and _advice(str(error)) is not None


def advice(error: BaseException) -> str | None:
    """Return what to do about an error; None if there is no advice."""
    if isinstance(error, exceptions.InvalidResponse):
        return _NOT_REDIS
    if isinstance(error, KeyTaken):
        return "remove it, or set TURNBUS_PREFIX"
    if isinstance(error, exceptions.AskError | exceptions.ClusterCrossSlotError):  # or MOVED
        return _IS_CLUSTER
    if isinstance(error, exceptions.ReadOnlyError):
        return "it is a replica: name its master, or sentinels that know it"
    if isinstance(error, exceptions.OutOfMemoryError):
        return "raise its maxmemory, or make room"
    if isinstance(error, exceptions.AuthenticationError):
        return "check user and password in the URL"
    if isinstance(error, exceptions.ConnectionError) and "max number of clients" in str(error):
        return "raise maxclients there; a worker has up to 32 connections"
    if isinstance(error, exceptions.ResponseError):
        return _advice(str(error)) or _OUTAGES.get(str(error).partition(" ")[0])
    return None


def _advice(text: str) -> str | None:
    found = (what for pattern, what in _LACKS if re.search(pattern, text, re.IGNORECASE))
    return next(found, None)


def in_words(error: BaseException) -> str:
    """Return the error text in one short line, without the arguments of a command."""
    text = str(error)
    if unknown := re.match(r"unknown command ['`]?(\w+)", text, re.IGNORECASE):
        return f"unknown command {unknown[1]}"
    line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    return (
        line if len(line) <= MAX_LINE_CHARACTERS else line.partition(". ")[0][:MAX_LINE_CHARACTERS]
    )


class Server(msgspec.Struct, frozen=True):
    """What a server reports about itself."""

    name: str
    version: tuple[int, ...] | None
    """Version of the server; None if it cannot be parsed."""
    shown: str
    """Name and version, for display."""
    mode: str
    maxmemory_policy: str

    @classmethod
    def read(cls, about: dict[str, Any]) -> "Server":
        """Parse the reply to INFO, whatever fields it has."""
        names = {"valkey_version": "Valkey", "dragonfly_version": "Dragonfly"}
        name = next((name for field, name in names.items() if field in about), "Redis")
        text = str(about.get("valkey_version", about.get("redis_version", "")))
        found = re.match(r"(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?", text)
        version = tuple(int(part or 0) for part in found.groups()) if found else None
        shown = "".join(c for c in text if c.isprintable())[:_MAX_VERSION_CHARACTERS]
        return cls(
            name,
            version,
            f"{name} {shown}" if shown else f"{name} of an unknown version",
            str(about.get("redis_mode", about.get("server_mode", ""))),
            str(about.get("maxmemory_policy", "unknown")),
        )

    @property
    def fault(self) -> str | None:
        """Why no worker can use this server, and what to do; None if no reason is known."""
        if self.mode == "sentinel":
            return (
                "it is a sentinel: begin the URL with redis+sentinel://, and end it with /SERVICE"
            )
        if self.version is not None and self.version < MIN_REDIS_VERSION:
            return f"{self.shown} is too old; {_UPGRADE}"
        return None


async def servers(redis: Redis) -> list[Server]:
    """Return what each master reports about itself, without masters that deny INFO to this user.

    Raises redis-py's errors during an outage, and InvalidResponse if the server is not Redis.
    """
    masters = await redis.masters() if isinstance(redis, ClusterClient) else [redis]
    found = []
    for master in masters:
        try:
            found.append(Server.read(await master.info()))
        except exceptions.ResponseError as error:
            if not isinstance(error, exceptions.NoPermissionError) and not lacks(error):
                raise
        except (AttributeError, TypeError, ValueError) as error:  # the reply is not lines of text
            raise exceptions.InvalidResponse(f"INFO cannot be read: {error}") from error
    return found
