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
from worker.bus.connection import BusHealth, patiently
from worker.bus.fitness import reraise_taken
from worker.bus.intake import Fence

ASK_AGAIN_S = 0.2
"""How often a session that waits asks whether its turn has come."""

SPEAK_S = 5.0
"""How often a worker speaks for the places of its sessions."""

LAPSE_S = 30.0
"""Silence after which a place is given up: some leases, so that a takeover finds it."""


class Seat(msgspec.Struct, frozen=True):
    """One session's place, as one owner knows it."""

    member: str
    entry: str
    count: int

    @classmethod
    def of(cls, lane: str, session: str, fence: Fence) -> "Seat":
        """Name the place of a session that is owned under `fence`."""
        return cls(Keys.gate_member(lane, session), fence.entry, fence.count)


class Gate:
    """The fleet's permits; `permits` 0 is no limit."""

    def __init__(self, redis: Redis, health: BusHealth, keys: Keys, permits: int) -> None:
        self._redis = redis
        self._health = health
        self._keys = [keys.gate, keys.gate_holders]
        self._permits = permits
        self._taken: dict[str, Seat] = {}  # by entry
        self._waiting: set[str] = set()  # entries
        self._spoken = anyio.Event()
        self._spoken.set()

    @property
    def waiting(self) -> int:
        """How many sessions wait for a permit."""
        return len(self._waiting)

    async def run(self) -> None:
        """Speak for the places our sessions have, and give up those of nobody, until cancelled."""
        while self._permits:
            await patiently(self._health, self._speak)
            await anyio.sleep(SPEAK_S)

    async def _speak(self) -> None:
        """Try once; each time for the places there are then."""
        # During an outage nobody could speak: everybody gets the time to do so again.
        lapse_s = LAPSE_S if self._health.up_for_s > LAPSE_S else 0.0
        self._spoken = anyio.Event()
        try:
            await self._hold([*self._taken.values()], lapse_s)
        finally:
            self._spoken.set()

    async def enter(self, seat: Seat) -> bool:
        """Wait for a permit; return whether there was a wait."""
        ask = partial(self._hold, [seat])
        try:
            while self._permits and not (await patiently(self._health, ask))[0]:
                self._waiting.add(seat.entry)
                await anyio.sleep(ASK_AGAIN_S)
            waited = seat.entry in self._waiting
        finally:
            self._waiting.discard(seat.entry)
        self._taken[seat.entry] = seat
        return waited

    async def leave(self, seat: Seat) -> None:
        """Give the place up, unless it is a later owner's. Safe to repeat."""
        self.forget(seat.entry)
        if self._permits:
            await patiently(self._health, partial(self._leave, seat))

    async def _leave(self, seat: Seat) -> None:
        await self._spoken.wait()  # for this place too, maybe: it would be wanted again
        args: list[scripts.Arg] = [seat.member, seat.entry, seat.count]
        await self._run(scripts.GATE_LEAVE, args)

    def forget(self, entry: str) -> None:
        """Speak no more for a session that is not run here any more; its place may be wanted."""
        self._taken.pop(entry, None)

    async def _hold(self, seats: Sequence[Seat], lapse_s: float = 0.0) -> list[int]:
        args: list[scripts.Arg] = [self._permits, int(lapse_s * 1000)]
        for seat in seats:
            args += seat.member, seat.entry, seat.count
        may: list[int] = await self._run(scripts.GATE, args)
        return may

    async def _run(self, script: scripts.Script, args: Sequence[scripts.Arg]) -> Any:  # noqa: ANN401 - each script's own reply
        """Run a script. Raises `KeyTaken` if another program has a key of the gate."""
        try:
            return await script(self._redis, self._keys, args)
        except ResponseError as error:
            kinds = dict(zip(self._keys, ("zset", "hash"), strict=True))
            await reraise_taken(error, self._redis, kinds)
            raise
