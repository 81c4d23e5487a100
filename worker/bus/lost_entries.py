"""Recovery of lost sessions: live sessions without an entry in the sessions stream.

A live owner notices within a heartbeat that its entry was trimmed or deleted, and restores it. An
owner that dies first cannot. When a script claims a deleted entry, Redis drops it from the pending
list, and the script records its id. This module finds the session with that id by its state.

Entries that Redis still has are taken over by `worker.leases.acquire`.
"""

import logging
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any, NamedTuple

import anyio
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from schemas.keys import Keys
from schemas.turns import decode_record
from worker.bus.client.connection import describe, is_outage
from worker.bus.inspection import iter_entries
from worker.bus.ownership import SessionLeases
from worker.text import pluralize

log = logging.getLogger(__name__)

OWNER_GRACE_S = 10.0
"""Delay in which owners may restore their entries themselves."""

SEARCH_LOCK_TTL_S = 10.0
"""Time after which the search lock of a dead worker expires."""

UNLOCK_TIMEOUT_S = 1.0
"""Timeout for the release of the search lock."""

_STATES_PER_PIPELINE = 100
"""Maximum number of states read in one pipeline."""

_MAX_IDS = 1_000
"""Maximum number of recorded ids per search."""


class _Live(NamedTuple):
    """The state of a live session."""

    key: str
    entry_id: str
    run: str
    fields: bytes


class OrphanRecovery:
    """Finds lost sessions and restores their entries. Several may run at once."""

    def __init__(self, redis: Redis, keys: Keys, leases: SessionLeases) -> None:
        self._redis = redis
        self._keys = keys
        self._leases = leases

    async def recover_known(self) -> bool:
        """Restore the sessions of the recorded ids, unless another worker is searching.

        Returns whether some ids matched no session. Such a session may have been claimed just now,
        or under a later entry than in its state; `recover_all` finds it.
        """
        search, mine = self._keys.search, self._leases.consumer
        if not await self._redis.set(search, mine, px=int(SEARCH_LOCK_TTL_S * 1000), nx=True):
            return False
        try:
            ids: Any = await self._redis.zrange(self._keys.lost, 0, _MAX_IDS - 1)
            lost = {each.decode("utf-8", "replace") for each in ids}
            if not lost:
                return False
            after = await self._leases.last_entry()
            found: list[_Live] = []
            try:
                async for live in self._live():
                    if live.entry_id in lost:
                        found.append(live)  # noqa: PERF401 - a comprehension would lose them
            finally:
                # During an outage of one master, the sessions of the others do not wait for it.
                await self._restore(found, after)
            await self._redis.zrem(self._keys.lost, *ids)
            return bool(lost - {live.entry_id for live in found})
        finally:
            with anyio.move_on_after(UNLOCK_TIMEOUT_S, shield=True):
                await self._redis.unlink(search)

    async def recover_all(self) -> int:
        """Restore every live session that is not announced; return how many.

        A session must be missing in two searches, `OWNER_GRACE_S` apart: its owner may restore it.
        """
        seen = {*await self._without_entry(await self._orphans())}
        if not seen:
            return 0
        await anyio.sleep(OWNER_GRACE_S)
        after = await self._leases.last_entry()
        return await self._restore(seen & await self._orphans(), after)

    async def _orphans(self) -> set[_Live]:
        """Return every live session that was not announced when the search for them began."""
        announced = await self._announced()
        return {live async for live in self._live() if not {live.entry_id, live.run} & announced}

    async def _restore(self, found: Iterable[_Live], after: str) -> int:
        """Announce sessions again; `after` is the stream's last id from before they were found."""
        restored = 0
        for live in await self._without_entry(found):
            try:
                texts = decode_record(live.fields, dict[str, str])
                fields = {name.encode(): text.encode() for name, text in texts.items()}
                missing = await self._leases.restore_entry(live.entry_id, live.run, fields, after)
            except (msgspec.DecodeError, ResponseError) as error:
                if is_outage(error):
                    raise
                log.error("%s cannot be announced again: %s", live.key, error)  # noqa: TRY400
                continue
            if missing:
                log.warning("%s: restored its entry (entry lost, owner dead)", live.key)
            restored += missing
        return restored

    async def _without_entry(self, found: Iterable[_Live]) -> list[_Live]:
        """Return the sessions without an entry. The entries are read after the states."""
        found = dict.fromkeys(found)
        if not found:
            return []
        announced = await self._announced()
        return [live for live in found if not {live.entry_id, live.run} & announced]

    async def _announced(self) -> set[str]:
        """Return the id of every session entry, and the run of each restored one."""
        announced = set()
        async for entry_id, fields in iter_entries(self._redis, self._keys.sessions):
            announced |= {entry_id, fields.get(b"run", b"").decode("utf-8", "replace")}
        return announced

    async def _live(self) -> AsyncIterator[_Live]:
        """Yield the live sessions; states that Redis denies to this worker are logged."""
        keys: list[Any] = []
        denied: list[RedisError] = []
        every = self._keys.state("*", "*")
        outage: Exception | None = None
        try:
            async for key in self._redis.scan_iter(match=every, count=1_000, _type="HASH"):
                keys.append(key)
                if len(keys) == _STATES_PER_PIPELINE:
                    for live in await self._read(keys, denied):
                        yield live
                    keys.clear()
        except (RedisError, OSError) as error:  # of one master; the others sent their keys
            outage = error
        for live in await self._read(keys, denied):
            yield live
        if outage is not None:
            raise outage
        if denied:
            states = pluralize(len(denied), "state")
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
            status, entry_id, run, fields = state
            if status == b"live" and None not in (entry_id, run, fields):
                name, old, first = (
                    each.decode("utf-8", "replace") for each in (key, entry_id, run)
                )
                found.append(_Live(name, old, first, fields))
        return found
