"""The target of the nemesis: what there is to break, by one fault at a time."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import anyio
import msgspec
from redis.exceptions import RedisError

from schemas.keys import GROUP
from schemas.turns import WorkerRecord
from worker.local.chaos.fleet import Life, Slot
from worker.local.chaos.plan import Plan
from worker.local.chaos.proxy import Link
from worker.local.chaos.rig import Rig

_LONG_PAUSE_S: Final = 8.0
"""At least: longer than the default lease by far."""


class Kill(NamedTuple):
    """A kill -9 that left another worker: when, in Unix milliseconds, and whose sessions' owner."""

    at_ms: int
    sessions: tuple[str, ...]


class Target:
    """The rig as faults see it: which parts are free, and what was done to it."""

    def __init__(self, plan: Plan, rig: Rig, rng: random.Random) -> None:
        self.rig: Final = rig
        self.rng: Final = rng
        self.lease_s: Final = plan.lease_ms / 1_000
        self.long_pause_s: Final = max(_LONG_PAUSE_S, 3 * self.lease_s)
        self.latency_ms: Final = plan.latency_ms
        self.held: Final[set[str]] = set()
        """Parts that a fault is at."""
        self.kills: Final[list[Kill]] = []
        self.outages_ms: Final[list[tuple[int, int]]] = []
        """When Redis was away."""
        self.log: Final[list[str]] = []
        """What was done, and when."""

    @contextmanager
    def hold(self, *names: str) -> Iterator[bool]:
        """Keep other faults from these parts; false if one has them."""
        free = not self.held.intersection(names)
        if free:
            self.held.update(names)
        try:
            yield free
        finally:
            if free:
                self.held.difference_update(names)

    def slot(self) -> Slot | None:
        """Choose a worker no other fault is at."""
        free = [slot for slot in self.rig.fleet.slots if slot.lives and slot.name not in self.held]
        return self.rng.choice(free) if free else None

    def note(self, what: str) -> None:
        """Log what is done now."""
        self.log.append(f"{clock(time.time_ns() // 1_000_000)} {what}")

    async def sessions_of(self, life: Life) -> tuple[str, ...]:
        """Return the sessions a process owns; none if it cannot be told now."""
        rig = self.rig
        try:
            records: Any = await rig.redis.hvals(rig.keys.workers)
            consumer = next(
                (
                    record.consumer
                    for record in (msgspec.json.decode(raw, type=WorkerRecord) for raw in records)
                    if record.pid == life.pid
                ),
                None,
            )
            if consumer is None:
                return ()
            rows: Any = await rig.redis.xpending_range(
                rig.keys.sessions, GROUP, "-", "+", 1_000, consumername=consumer
            )
            entries: Any = await rig.redis.xrange(rig.keys.sessions)
        except (RedisError, OSError):
            return ()
        owned = {row["message_id"] for row in rows}
        return tuple(fields[b"session"].decode() for entry, fields in entries if entry in owned)

    async def stall(self, links: set[Link], seconds: float, *, flows: bool) -> None:
        """Let nothing through; then all that waited, or nothing ever."""
        stalled = set(links)
        for link in stalled:
            link.stall()
        await anyio.sleep(seconds)
        for link in stalled:
            if flows:
                link.flow()
            else:
                link.cut()


def clock(at_ms: int) -> str:
    """Write Unix milliseconds as the UTC time of day, as the workers' logs have it."""
    return f"{time.strftime('%H:%M:%S', time.gmtime(at_ms // 1_000))}.{at_ms % 1_000:03d}"
