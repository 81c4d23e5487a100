"""Dead letters: write rejected entries to the dead stream, list them, and announce them again."""

import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import anyio
import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas.audio import Fields, decode_session
from schemas.keys import Keys
from schemas.turns import DeadLetter, decode_record
from schemas.validation import EntryError
from worker.bus import scripts
from worker.bus.client.connection import RedisHealth, describe
from worker.bus.inspection import announced, iter_entries
from worker.errors import TurnbusError
from worker.telemetry.logs import SessionName

log = logging.getLogger(__name__)

MAX_DEAD_LETTERS = 10_000
MAX_DEAD_LETTER_BYTES = 16 * 1024
"""Maximum size of a rejected session entry that is kept; a valid entry is always smaller."""


class DeadLetterWriter:
    """Writes rejected entries to the dead stream and logs their ids there."""

    def __init__(
        self,
        redis: Redis,
        health: RedisHealth,
        keys: Keys,
        isolate: Callable[[str], AbstractContextManager[None]],
        counts: Counter[str],
    ) -> None:
        self._redis = redis
        self._health = health
        self._keys = keys
        self._isolate = isolate
        self._counts = counts
        self._queued: deque[tuple[str, DeadLetter]] = deque()
        self._wake = anyio.Event()
        self._all_written = anyio.Event()
        self._denied = False
        self.writes_in_progress = 0
        """Number of `write` calls that wait for Redis."""

    async def write(
        self, entry_id: str, session: str, reason: str, detail: str, fields: Fields
    ) -> None:
        """Write a rejected session entry, before it is removed; wait until Redis is available."""
        rejected = self._rejected(entry_id, self._keys.sessions, session, reason, detail, fields)
        self.writes_in_progress += 1
        try:
            await self._write_and_log(*rejected)
        finally:
            self.writes_in_progress -= 1

    def put(
        self, entry_id: str, stream: str, session: str, reason: str, detail: str, fields: Fields
    ) -> None:
        """Queue the dead letter of what a `session.error` reports; a killed worker may lose it."""
        if not self._queued:
            self._all_written = anyio.Event()
        self._queued.append(self._rejected(entry_id, stream, session, reason, detail, fields))
        self._wake.set()

    async def wait_written(self) -> None:
        """Wait until everything queued is written."""
        if self._queued:
            await self._all_written.wait()

    async def run(self) -> None:
        """Write what is queued until cancelled; retry what Redis has not confirmed."""
        try:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                while self._queued:
                    await self._write_and_log(*self._queued[0])
                    self._queued.popleft()
                self._all_written.set()
        finally:
            for name, dead in self._queued:
                _log(name, dead, "not kept: the worker stopped first")

    def _rejected(
        self, entry_id: str, stream: str, session: str, reason: str, detail: str, fields: Fields
    ) -> tuple[str, DeadLetter]:
        """Count a rejected entry; return its session's name for the log, and its dead letter.

        Only a session entry keeps its fields.
        """
        self._counts[reason] += 1
        traceparent = fields.get(b"traceparent", b"").decode("ascii", "replace")
        name = SessionName(session, traceparent) if session else "no session"
        dead = DeadLetter(
            id=entry_id,
            stream=stream,
            session=session,
            reason=reason,
            detail=detail,
            size=sum(map(len, fields.values())),
            entry=_as_json(fields) if stream == self._keys.sessions else "",
        )
        return name, dead

    async def _write_and_log(self, name: str, dead: DeadLetter) -> None:
        where = "not kept: internal error"  # it must not delay the others
        with self._isolate("dead_letters"):
            where = await self._write(dead)
        _log(name, dead, where)

    async def _write(self, dead: DeadLetter) -> str:
        """Write an entry and return where it is; an entry that Redis rejects is only logged.

        A full Redis accepts it: a rejected session entry of about its size is removed next.
        """
        fields = chain.from_iterable(msgspec.structs.asdict(dead).items())
        values = ("MAXLEN", "~", MAX_DEAD_LETTERS, "*", *fields)
        try:
            kept = await self._health.retry(
                lambda: scripts.write(
                    self._redis, key=self._keys.dead, command="XADD", values=values
                )
            )
        except ResponseError as error:
            reason = describe(error)
            if not self._denied:
                log.error(  # noqa: TRY400 - the error is the operator's
                    "cannot write dead letters, rejected entries are only logged (%s)", reason
                )
            self._denied = True
            return f"not kept: {reason}"
        self._denied = False
        return f"`turnbus dead` has it as {kept.decode()}"


def _log(name: str, dead: DeadLetter, where: str) -> None:
    log.warning(
        "%s: rejected entry %s of %s: %s (%s); %s",
        *(name, dead.id, dead.stream, dead.detail, dead.reason, where),
    )


def _as_json(fields: Fields) -> str:
    """Return an entry's fields as JSON; empty if they are missing, too large or not UTF-8."""
    if not fields or sum(map(len, chain.from_iterable(fields.items()))) > MAX_DEAD_LETTER_BYTES:
        return ""
    try:
        text = {name.decode(): value.decode() for name, value in fields.items()}
    except UnicodeDecodeError:
        return ""
    return msgspec.json.encode(text).decode()


class ListedDeadLetter(DeadLetter, frozen=True, kw_only=True):
    """One entry of the dead stream."""

    dead: str
    """Entry id in the dead stream."""


async def list_dead_letters(redis: Redis, keys: Keys) -> AsyncIterator[ListedDeadLetter]:
    """Yield rejected entries, oldest first."""
    async for entry_id, fields in iter_entries(redis, keys.dead):
        text = {
            name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for name, value in fields.items()
        }
        try:
            yield msgspec.convert({**text, "dead": entry_id}, ListedDeadLetter, strict=False)
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
    reply: Any = await redis.xadd(
        keys.sessions, {name: value for name, value in fields.items() if name != "run"}
    )
    await redis.xdel(keys.dead, dead)
    announced_as: str = reply.decode()
    return announced_as


async def _check(redis: Redis, keys: Keys, fields: dict[str, str]) -> None:
    """Raise `TurnbusError` if a worker would reject this entry now."""
    try:
        entry = decode_session({name.encode(): value.encode() for name, value in fields.items()})
    except EntryError as error:
        raise TurnbusError(f"it would be rejected again: {error}") from None
    async for each in announced(redis, keys):
        if (each.session, each.lane) == (entry.session, entry.lane):
            raise TurnbusError(f"{entry.session} is announced already, as {each.entry_id}")
    if await redis.hget(keys.state(entry.lane, entry.session), "status") is not None:
        when = "until its state expires, TURNBUS_RETENTION_S after its end"
        raise TurnbusError(f"{entry.session} has ended; its id cannot be used again {when}")
