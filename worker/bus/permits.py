"""Permits: the limit of open STT sockets in the whole fleet.

A session requests a permit when it first wants a socket. It keeps its place in the queue through
reconnects, takeovers and releases, and gives it up when it parks or ends. Every request carries the
owner's fence, so that a fenced owner cannot release the permit of the next one. Workers renew
permits in use; a permit that a crash or a lost state leaves behind expires after `PERMIT_TTL_S`.
"""

from collections.abc import Sequence
from functools import partial

import anyio
import msgspec
from redis.asyncio import Redis

from schemas.keys import Keys
from worker.bus import scripts
from worker.bus.client.connection import RedisHealth
from worker.bus.fitness import explain_taken_keys
from worker.bus.ownership import Fence

POLL_INTERVAL_S = 0.2
"""Interval between requests of a waiting session."""

RENEW_INTERVAL_S = 5.0
"""Interval between renewals of the permits of a worker's sessions."""

PERMIT_TTL_S = 30.0
"""Time without a renewal after which a permit expires. A takeover within it keeps the permit."""


class Permit(msgspec.Struct, frozen=True):
    """One session's place in the queue, as one owner requests it."""

    member: str
    entry_id: str
    count: int

    @classmethod
    def of(cls, lane: str, session: str, fence: Fence) -> "Permit":
        """Return the permit of a session that is owned under `fence`."""
        return cls(Keys.gate_member(lane, session), fence.entry_id, fence.delivery_count)


class ConnectionPermits:
    """The fleet's permits; `permits` 0 means no limit."""

    def __init__(self, redis: Redis, health: RedisHealth, keys: Keys, permits: int) -> None:
        self._redis = redis
        self._health = health
        self._kinds = {keys.gate: "zset", keys.gate_holders: "hash"}
        self._keys = keys
        self._limit = permits
        self._held: dict[str, Permit] = {}  # by entry id
        self._waiting: set[str] = set()  # entry ids
        self._renewed = anyio.Event()
        self._renewed.set()

    @property
    def waiting(self) -> int:
        """How many sessions wait for a permit."""
        return len(self._waiting)

    async def run(self) -> None:
        """Renew the permits of this worker's sessions, and expire unused ones, until cancelled."""
        while self._limit:
            await self._health.retry(self._renew)
            await anyio.sleep(RENEW_INTERVAL_S)

    async def _renew(self) -> None:
        """Renew the current permits; each retry renews those held at its time."""
        # No worker can renew during an outage: after it every worker gets the full time again.
        expiry_s = PERMIT_TTL_S if self._health.available_for_s > PERMIT_TTL_S else 0.0
        self._renewed = anyio.Event()
        try:
            await self._request([*self._held.values()], expiry_s)
        finally:
            self._renewed.set()

    async def acquire(self, permit: Permit) -> bool:
        """Wait for a permit; return whether there was a wait."""
        request = partial(self._request, [permit])
        try:
            while self._limit and not (await self._health.retry(request))[0]:
                self._waiting.add(permit.entry_id)
                await anyio.sleep(POLL_INTERVAL_S)
            waited = permit.entry_id in self._waiting
        finally:
            self._waiting.discard(permit.entry_id)
        self._held[permit.entry_id] = permit
        return waited

    async def release(self, permit: Permit) -> None:
        """Release the permit, unless a later owner requested it. Safe to repeat."""
        self.discard(permit.entry_id)
        if self._limit:
            await self._health.retry(partial(self._release, permit))

    async def _release(self, permit: Permit) -> None:
        await self._renewed.wait()  # a renewal in flight could request this permit again
        async with explain_taken_keys(self._redis, self._kinds):
            await scripts.release_permit(
                self._redis,
                queue_key=self._keys.gate,
                holders_key=self._keys.gate_holders,
                member=permit.member,
                entry_id=permit.entry_id,
                delivery_count=permit.count,
            )

    def discard(self, entry_id: str) -> None:
        """Stop renewing the permit of a session that ended here; another owner may need it."""
        self._held.pop(entry_id, None)

    async def _request(self, permits: Sequence[Permit], expiry_s: float = 0.0) -> list[int]:
        async with explain_taken_keys(self._redis, self._kinds):
            return await scripts.request_permits(
                self._redis,
                queue_key=self._keys.gate,
                holders_key=self._keys.gate_holders,
                limit=self._limit,
                expiry_ms=int(expiry_s * 1000),
                requests=(
                    part
                    for permit in permits
                    for part in (permit.member, permit.entry_id, permit.count)
                ),
            )
