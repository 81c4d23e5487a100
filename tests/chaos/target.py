"""Targets of the faults; locks allow one fault at a time for each part."""

import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any, Final, NamedTuple

import anyio
import msgspec
from redis.exceptions import RedisError

from schemas.keys import GROUP
from schemas.turns import WorkerRecord
from tests.chaos.harness import ChaosHarness, Slot
from tests.chaos.plan import ChaosPlan
from worker.bench.proxy import Link
from worker.local.harness import ChildProcess

_LONG_PAUSE_S: Final = 8.0
"""Minimum length of a long pause, far longer than the default lease."""

_STARTED_S: Final = 0.05
"""Interval between checks whether a worker was restarted."""


class Kill(NamedTuple):
    """A SIGKILL while another worker ran: its time in Unix milliseconds, and the owned sessions."""

    at_ms: int
    sessions: tuple[str, ...]


class FaultTarget:
    """Parts of the run with a lock for each, and the log of injected faults."""

    def __init__(self, plan: ChaosPlan, harness: ChaosHarness) -> None:
        self.harness: Final = harness
        self.lease_s: Final = plan.lease_ms / 1_000
        self.long_pause_s: Final = max(_LONG_PAUSE_S, 3 * self.lease_s)
        self.latency_ms: Final = plan.latency_ms
        self.max_lag_s: Final = plan.max_lag_s
        self._parts: Final[defaultdict[str, anyio.Lock]] = defaultdict(anyio.Lock)
        self.kills: Final[list[Kill]] = []
        self.outages_ms: Final[list[tuple[int, int]]] = []
        """Start and end of each Redis outage, in Unix milliseconds."""
        self.stt_outages_ms: Final[list[tuple[int, int]]] = []
        """Start and end of each provider outage, in Unix milliseconds."""
        self.log: Final[list[str]] = []
        """Injected faults, with their times."""

    @asynccontextmanager
    async def lock(self, *names: str) -> AsyncIterator[None]:
        """Lock these parts against other faults, in the order of requests."""
        async with AsyncExitStack() as parts:
            for name in sorted(names):  # one order for all, which prevents deadlocks
                await parts.enter_async_context(self._parts[name])
            yield

    @asynccontextmanager
    async def worker(self, rng: Random) -> AsyncIterator[tuple[Slot, ChildProcess]]:
        """Choose and lock a worker; yield its slot and its process."""
        slot = rng.choice(self.harness.fleet.slots)
        async with self.lock(slot.name):
            while True:
                if slot.processes:
                    break
                await anyio.sleep(_STARTED_S)
            yield slot, slot.processes[-1]

    def is_free(self, slot: Slot) -> bool:
        """Return whether no fault has locked a worker."""
        return not self._parts[slot.name].locked()

    def note(self, what: str) -> None:
        """Log a fault with the current time."""
        self.log.append(f"{clock(time.time_ns() // 1_000_000)} {what}")

    async def sessions_of(self, process: ChildProcess) -> tuple[str, ...]:
        """Return the sessions that a process owns; empty if Redis is not available."""
        harness = self.harness
        try:
            records: Any = await harness.redis.hvals(harness.keys.workers)
            consumer = next(
                (
                    record.consumer
                    for record in (msgspec.json.decode(raw, type=WorkerRecord) for raw in records)
                    if record.pid == process.pid
                ),
                None,
            )
            if consumer is None:
                return ()
            rows: Any = await harness.redis.xpending_range(
                harness.keys.sessions, GROUP, "-", "+", 1_000, consumername=consumer
            )
            entries: Any = await harness.redis.xrange(harness.keys.sessions)
        except (RedisError, OSError):
            return ()
        owned = {row["message_id"] for row in rows}
        return tuple(fields[b"session"].decode() for entry, fields in entries if entry in owned)

    async def stall(self, links: set[Link], seconds: float, *, flows: bool) -> None:
        """Stall the links, then resume or cut them."""
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
    """Format Unix milliseconds as the UTC time of day, as in the workers' logs."""
    return f"{time.strftime('%H:%M:%S', time.gmtime(at_ms // 1_000))}.{at_ms % 1_000:03d}"
