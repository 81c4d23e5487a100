"""The dead stream, as operators see it: what was refused, and one more try."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from redis.asyncio import Redis

from schemas.audio import decode_session
from schemas.keys import Keys
from schemas.turns import DeadLetter
from schemas.validation import EntryError
from worker.bus.inspection import announced, iter_entries
from worker.bus.records import decode_record
from worker.errors import NotFoundError, RequeueError


class ListedDeadLetter(DeadLetter, frozen=True, kw_only=True):
    """One entry of the dead stream."""

    dead: str
    """Its id there."""


async def list_dead_letters(redis: Redis, keys: Keys) -> AsyncIterator[ListedDeadLetter]:
    """Yield what was refused, oldest first."""
    async for entry, fields in iter_entries(redis, keys.dead):
        text = {
            name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for name, value in fields.items()
        }
        try:
            yield msgspec.convert({**text, "dead": entry}, ListedDeadLetter, strict=False)
        except msgspec.ValidationError:
            continue  # no worker wrote it


async def requeue(redis: Redis, keys: Keys, dead: str) -> str:
    """Announce a refused session again, and take it off the dead stream; return its new entry.

    Raises `NotThere` if there is no such entry, and `RequeueRefused` if it is no session's, or
    would be refused again.
    """
    rows: Any = await redis.xrange(keys.dead, dead, dead)
    if not rows:
        raise NotFoundError(f"{keys.dead} has no entry {dead}")
    kept = rows[0][1].get(b"entry", b"")
    if not kept:
        raise RequeueError(f"{dead} cannot be announced again: its content was not kept")
    try:
        fields = decode_record(kept, dict[str, str])
    except msgspec.DecodeError:
        raise RequeueError(f"{dead} cannot be announced again: no worker wrote it") from None
    await _check(redis, keys, fields)
    # Its id is new, and so is the run. Should we die between the two, it is announced and still
    # here: announced once more it would be refused as a duplicate.
    entry: Any = await redis.xadd(
        keys.sessions, {name: value for name, value in fields.items() if name != "run"}
    )
    await redis.xdel(keys.dead, dead)
    announced_as: str = entry.decode()
    return announced_as


async def _check(redis: Redis, keys: Keys, fields: dict[str, str]) -> None:
    """Raise `RequeueRefused` if a worker would refuse this entry now."""
    try:
        entry = decode_session({name.encode(): value.encode() for name, value in fields.items()})
    except EntryError as fault:
        raise RequeueError(f"it would be refused again: {fault}") from None
    async for each in announced(redis, keys):
        if (each.session, each.lane) == (entry.session, entry.lane):
            raise RequeueError(f"{entry.session} is announced already, as {each.entry}")
    if await redis.hget(keys.state(entry.lane, entry.session), "status") is not None:
        when = "until its state expires, TURNBUS_RETENTION_S after its end"
        raise RequeueError(f"{entry.session} has ended; its id cannot be used again {when}")
