"""The gate: no more open STT sockets in the whole fleet than the plan allows.

A session joins with the time it first wanted a socket and keeps that place through reconnects,
takeovers and handovers; it leaves when it parks or ends. The place is the session's; what is said
of it carries the fence of who says it, so that an owner put aside cannot give away the place of the
next. Places are spoken for while they are used: what a crash or a lost state leaves behind is given
up after `LAPSE_S`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas.keys import Keys
from worker.bus import scripts
from worker.bus.client.connection import RedisHealth, retry_while_unavailable
from worker.bus.fitness import reraise_taken
from worker.bus.ownership import Fence

POLL_INTERVAL_S = 0.2
"""How often a session that waits asks whether its turn has come."""

RENEW_INTERVAL_S = 5.0
"""How often a worker speaks for the places of its sessions."""

PERMIT_TTL_S = 30.0
"""Silence after which a place is given up: some leases, so that a takeover finds it."""


class Permit(msgspec.Struct, frozen=True):
    """One session's place, as one owner knows it."""

    member: str
    entry_id: str
    count: int

    @classmethod
    def of(cls, lane: str, session: str, fence: Fence) -> "Permit":
        """Name the place of a session that is owned under `fence`."""
        return cls(Keys.gate_member(lane, session), fence.entry_id, fence.delivery_count)


class ConnectionPermits:
    """The fleet's permits; `permits` 0 is no limit."""

    def __init__(self, redis: Redis, health: RedisHealth, keys: Keys, permits: int) -> None:
        self._redis = redis
        self._health = health
        self._keys = [keys.gate, keys.gate_holders]
        self._limit = permits
        self._held: dict[str, Permit] = {}  # by entry
        self._waiting: set[str] = set()  # entries
        self._renewed = anyio.Event()
        self._renewed.set()

    @property
    def waiting(self) -> int:
        """How many sessions wait for a permit."""
        return len(self._waiting)

    async def run(self) -> None:
        """Speak for the places our sessions have, and give up those of nobody, until cancelled."""
        while self._limit:
            await retry_while_unavailable(self._health, self._renew)
            await anyio.sleep(RENEW_INTERVAL_S)

    async def _renew(self) -> None:
        """Try once; each time for the places there are then."""
        # During an outage nobody could speak: everybody gets the time to do so again.
        lapse_s = PERMIT_TTL_S if self._health.available_for_s > PERMIT_TTL_S else 0.0
        self._renewed = anyio.Event()
        try:
            await self._request([*self._held.values()], lapse_s)
        finally:
            self._renewed.set()

    async def acquire(self, seat: Permit) -> bool:
        """Wait for a permit; return whether there was a wait."""
        ask = partial(self._request, [seat])
        try:
            while self._limit and not (await retry_while_unavailable(self._health, ask))[0]:
                self._waiting.add(seat.entry_id)
                await anyio.sleep(POLL_INTERVAL_S)
            waited = seat.entry_id in self._waiting
        finally:
            self._waiting.discard(seat.entry_id)
        self._held[seat.entry_id] = seat
        return waited

    async def release(self, seat: Permit) -> None:
        """Give the place up, unless it is a later owner's. Safe to repeat."""
        self.discard(seat.entry_id)
        if self._limit:
            await retry_while_unavailable(self._health, partial(self._release, seat))

    async def _release(self, seat: Permit) -> None:
        await self._renewed.wait()  # for this place too, maybe: it would be wanted again
        args: list[scripts.Arg] = [seat.member, seat.entry_id, seat.count]
        await self._run(scripts.RELEASE_PERMIT, args)

    def discard(self, entry: str) -> None:
        """Speak no more for a session that is not run here any more; its place may be wanted."""
        self._held.pop(entry, None)

    async def _request(self, seats: Sequence[Permit], lapse_s: float = 0.0) -> list[int]:
        args: list[scripts.Arg] = [self._limit, int(lapse_s * 1000)]
        for seat in seats:
            args += seat.member, seat.entry_id, seat.count
        may: list[int] = await self._run(scripts.REQUEST_PERMIT, args)
        return may

    async def _run(self, script: scripts.Script, args: Sequence[scripts.Arg]) -> Any:  # noqa: ANN401 - each script's own reply
        """Run a script. Raises `KeyTaken` if another program has a key of the permits."""
        try:
            return await script(self._redis, self._keys, args)
        except ResponseError as error:
            kinds = dict(zip(self._keys, ("zset", "hash"), strict=True))
            await reraise_taken(error, self._redis, kinds)
            raise
