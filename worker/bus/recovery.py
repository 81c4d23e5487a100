"""Lost sessions: live ones that no entry of the sessions stream names any more.

An owner that lives notices within a heartbeat that its entry was trimmed or deleted, and puts it
back. One that dies first cannot. Redis takes what left a stream off the pending list as soon as
somebody claims it; our scripts note its id then. An id does not tell whose it was; the sessions'
own states do.
"""

import logging
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any, NamedTuple

import anyio
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from schemas.keys import Keys
from worker.bus.client.connection import describe, is_outage
from worker.bus.inspection import iter_entries
from worker.bus.ownership import SessionOwnership
from worker.bus.records import decode_record
from worker.plurals import counted

log = logging.getLogger(__name__)

OWNER_GRACE_S = 10.0
"""How long owners get to put their entries back themselves."""

SEARCH_LOCK_TTL_S = 10.0
"""How long a worker keeps others from searching, should it die."""

UNLOCK_TIMEOUT_S = 1.0
"""How long it may take to let others search again."""

_AT_ONCE = 100
"""States read in one pipeline."""

_IDS_AT_ONCE = 1_000


class _Live(NamedTuple):
    """What the state of a live session tells."""

    key: str
    entry: str
    run: str
    fields: bytes


class OrphanRecovery:
    """Finds lost sessions and puts their entries back. Safe to run twice at once."""

    def __init__(self, redis: Redis, keys: Keys, intake: SessionOwnership) -> None:
        self._redis = redis
        self._keys = keys
        self._ownership = intake

    async def recover_known(self) -> bool:
        """Put back the sessions of entries noted as lost, unless another worker is at it.

        Returns whether of some no session was found. It may be claimed only now, or under a later
        entry than its state tells: then `restore_all` finds it.
        """
        search, mine = self._keys.search, self._ownership.consumer
        if not await self._redis.set(search, mine, px=int(SEARCH_LOCK_TTL_S * 1000), nx=True):
            return False
        try:
            return await self._restore_noted()
        finally:
            with anyio.move_on_after(UNLOCK_TIMEOUT_S, shield=True):
                await self._redis.unlink(search)

    async def recover_all(self) -> int:
        """Put back every live session that is not announced; return how many.

        Only what is found so twice, a while apart: an owner may just be about to do it.
        """
        seen = {*await self._without_entry(await self._orphans())}
        if not seen:
            return 0
        await anyio.sleep(OWNER_GRACE_S)
        after = await self._ownership.last_entry()
        return await self._restore(seen & await self._orphans(), after)

    async def _restore_noted(self) -> bool:
        ids: Any = await self._redis.zrange(self._keys.lost, 0, _IDS_AT_ONCE - 1)
        lost = {each.decode("utf-8", "replace") for each in ids}
        if not lost:
            return False
        after = await self._ownership.last_entry()
        found: list[_Live] = []
        try:
            async for live in self._live():
                if live.entry in lost:
                    found.append(live)  # noqa: PERF401 - a comprehension would lose them
        finally:
            # Where a master is away, those of the others need not wait for it.
            await self._restore(found, after)
        await self._redis.zrem(self._keys.lost, *ids)
        return bool(lost - {live.entry for live in found})

    async def _orphans(self) -> set[_Live]:
        """Return every live session that was not announced when the search for them began."""
        announced = await self._announced()
        return {live async for live in self._live() if not {live.entry, live.run} & announced}

    async def _restore(self, found: Iterable[_Live], after: str) -> int:
        """Announce sessions again; `after` is the stream's last id from before they were found."""
        restored = 0
        for live in await self._without_entry(found):
            try:
                texts = decode_record(live.fields, dict[str, str])
                fields = {name.encode(): text.encode() for name, text in texts.items()}
                vanished = await self._ownership.restore_unowned(
                    live.entry, live.run, fields, after
                )
            except (msgspec.DecodeError, ResponseError) as error:
                if is_outage(error):
                    raise
                log.error("%s cannot be announced again: %s", live.key, error)  # noqa: TRY400
                continue
            if vanished:
                log.warning("%s: Redis lost its entry, and its owner died; put back", live.key)
            restored += vanished
        return restored

    async def _without_entry(self, found: Iterable[_Live]) -> list[_Live]:
        """Return those that no entry names; who announced one later, or again, is asked last."""
        found = dict.fromkeys(found)
        if not found:
            return []
        announced = await self._announced()
        return [live for live in found if not {live.entry, live.run} & announced]

    async def _announced(self) -> set[str]:
        """Return the id of every session entry, and the run of each that was put back."""
        announced = set()
        async for entry, fields in iter_entries(self._redis, self._keys.sessions):
            announced |= {entry, fields.get(b"run", b"").decode("utf-8", "replace")}
        return announced

    async def _live(self) -> AsyncIterator[_Live]:
        """Yield the live sessions; those of lanes that we may not use are told, and left out."""
        keys: list[Any] = []
        denied: list[RedisError] = []
        every = self._keys.state("*", "*")
        fault: Exception | None = None
        try:
            async for key in self._redis.scan_iter(match=every, count=1_000, _type="HASH"):
                keys.append(key)
                if len(keys) == _AT_ONCE:
                    for live in await self._read(keys, denied):
                        yield live
                    keys.clear()
        except (RedisError, OSError) as error:  # of one master; the others told theirs
            fault = error
        for live in await self._read(keys, denied):
            yield live
        if fault is not None:
            raise fault
        if denied:
            states = counted(len(denied), "state")
            log.warning("%s of sessions cannot be read: %s", states, describe(denied[0]))

    async def _read(self, keys: Collection[bytes], denied: list[RedisError]) -> list[_Live]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(key, "status", "entry", "run", "fields")
            states: Any = await pipe.execute(raise_on_error=False)
        found = []
        for key, state in zip(keys, states, strict=True):
            if isinstance(state, RedisError):
                if is_outage(state):
                    raise state
                denied.append(state)
                continue
            status, entry, run, fields = state
            if status == b"live" and None not in (entry, run, fields):
                name, old, first = (each.decode("utf-8", "replace") for each in (key, entry, run))
                found.append(_Live(name, old, first, fields))
        return found
