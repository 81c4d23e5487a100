"""The dead stream, for operators: list rejected entries, and announce them again."""

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
from worker.errors import TurnbusError


class ListedDeadLetter(DeadLetter, frozen=True, kw_only=True):
    """One entry of the dead stream."""

    dead: str
    """Entry id in the dead stream."""


async def list_dead_letters(redis: Redis, keys: Keys) -> AsyncIterator[ListedDeadLetter]:
    """Yield rejected entries, oldest first."""
    async for entry, fields in iter_entries(redis, keys.dead):
        text = {
            name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for name, value in fields.items()
        }
        try:
            yield msgspec.convert({**text, "dead": entry}, ListedDeadLetter, strict=False)
        except msgspec.ValidationError:
            continue  # not written by a worker


async def requeue(redis: Redis, keys: Keys, dead: str) -> str:
    """Announce a rejected session again, and delete its dead letter; return the new entry id.

    Raises `TurnbusError` if there is no such entry, or if it is not a session, or would be rejected
    again.
    """
    rows: Any = await redis.xrange(keys.dead, dead, dead)
    if not rows:
        raise TurnbusError(f"{keys.dead} has no entry {dead}")
    content = rows[0][1].get(b"entry", b"")
    if not content:
        raise TurnbusError(f"{dead} cannot be announced again: its content was not stored")
    try:
        fields = decode_record(content, dict[str, str])
    except msgspec.DecodeError:
        raise TurnbusError(f"{dead} cannot be announced again: its content is invalid") from None
    await _check(redis, keys, fields)
    # The entry gets a new id and a new run. A crash between the two commands leaves the dead
    # letter in place: announced once more, it is rejected as a duplicate.
    entry: Any = await redis.xadd(
        keys.sessions, {name: value for name, value in fields.items() if name != "run"}
    )
    await redis.xdel(keys.dead, dead)
    announced_as: str = entry.decode()
    return announced_as


async def _check(redis: Redis, keys: Keys, fields: dict[str, str]) -> None:
    """Raise `TurnbusError` if a worker would reject this entry now."""
    try:
        entry = decode_session({name.encode(): value.encode() for name, value in fields.items()})
    except EntryError as error:
        raise TurnbusError(f"it would be rejected again: {error}") from None
    async for each in announced(redis, keys):
        if (each.session, each.lane) == (entry.session, entry.lane):
            raise TurnbusError(f"{entry.session} is announced already, as {each.entry}")
    if await redis.hget(keys.state(entry.lane, entry.session), "status") is not None:
        when = "until its state expires, TURNBUS_RETENTION_S after its end"
        raise TurnbusError(f"{entry.session} has ended; its id cannot be used again {when}")
