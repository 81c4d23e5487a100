"""Lost sessions: live ones that no entry of the sessions stream names any more.

An owner that lives notices within a heartbeat that its entry was trimmed or deleted, and puts it
back. One that dies first cannot. Then the entry's id is left in the pending list, which does not
tell whose it was; the sessions' own states do.
"""

import logging
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any, NamedTuple

import anyio
import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas.keys import GROUP, Keys
from worker.bus.census import pages
from worker.bus.connection import is_outage
from worker.bus.intake import Intake
from worker.bus.records import read_record

log = logging.getLogger(__name__)

OWNERS_S = 10.0
"""How long owners get to put their entries back themselves."""

_AT_ONCE = 100
"""States read in one pipeline."""


class _Live(NamedTuple):
    """What the state of a live session tells."""

    key: str
    entry: str
    run: str
    fields: bytes


class LostSessions:
    """Finds lost sessions and puts their entries back. Safe to run twice at once."""

    def __init__(self, redis: Redis, keys: Keys, intake: Intake) -> None:
        self._redis = redis
        self._keys = keys
        self._intake = intake

    async def restore(self, entries: Collection[str]) -> int:
        """Put back the sessions of entries that are pending and gone; return how many.

        Such an entry is off the pending list then, whether a session was found for it or not: one
        that nobody claimed yet is known to nobody. Safe to repeat.
        """
        entries = [entry for entry in entries if await self._is_pending(entry)]
        if not entries:
            return 0
        after = await self._intake.last_entry()
        restored = await self._put_back([live async for live in self._live(entries)], after)
        for entry in entries:
            await self._intake.settle(entry)
        return restored

    async def restore_all(self) -> int:
        """Put back every live session that is not announced; return how many.

        Only what is found so twice, a while apart: an owner may just be about to do it.
        """
        seen = {live async for live in self._live()}
        if not await self._unannounced(seen):
            return 0
        await anyio.sleep(OWNERS_S)
        after = await self._intake.last_entry()
        return await self._put_back(seen & {live async for live in self._live()}, after)

    async def _put_back(self, found: Iterable[_Live], after: str) -> int:
        """Announce sessions again; `after` is the stream's last id from before they were found."""
        restored = 0
        for live in await self._unannounced(found):
            try:
                texts = read_record(live.fields, dict[str, str])
                fields = {name.encode(): text.encode() for name, text in texts.items()}
                restored += await self._intake.announce_again(live.entry, live.run, fields, after)
            except (msgspec.DecodeError, ResponseError) as error:
                if is_outage(error):
                    raise
                log.error("%s cannot be announced again: %s", live.key, error)  # noqa: TRY400
            else:
                log.warning("%s: Redis lost its entry, and its owner died; put back", live.key)
        return restored

    async def _unannounced(self, found: Iterable[_Live]) -> list[_Live]:
        """Return those that no entry names; who announced one later, or again, is asked last."""
        found = dict.fromkeys(found)
        if not found:
            return []
        announced = set()
        async for entry, fields in pages(self._redis, self._keys.sessions):
            announced |= {entry, fields.get(b"run", b"").decode("utf-8", "replace")}
        return [live for live in found if not {live.entry, live.run} & announced]

    async def _is_pending(self, entry: str) -> bool:
        return bool(
            await self._redis.xpending_range(self._keys.sessions, GROUP, entry, entry, count=1)
        )

    async def _live(self, entries: Collection[str] | None = None) -> AsyncIterator[_Live]:
        """Yield the live sessions, or those that were claimed under one of these entries."""
        keys: list[Any] = []
        every = self._keys.state("*", "*")
        async for key in self._redis.scan_iter(match=every, count=1_000, _type="HASH"):
            keys.append(key)
            if len(keys) == _AT_ONCE:
                async for live in self._read(keys, entries):
                    yield live
                keys.clear()
        async for live in self._read(keys, entries):
            yield live

    async def _read(self, keys: list[Any], entries: Collection[str] | None) -> AsyncIterator[_Live]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(key, "status", "entry", "run", "fields")
            states: Any = await pipe.execute()
        for key, (status, entry, run, fields) in zip(keys, states, strict=True):
            if status != b"live" or None in (entry, run, fields):
                continue
            if entries is None or entry.decode("utf-8", "replace") in entries:
                yield _Live(key.decode("utf-8", "replace"), entry.decode(), run.decode(), fields)
