"""Faults by name, their schedule, and their injection."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from random import Random
from typing import Final, NamedTuple

import anyio

from tests.chaos import provider_faults, redis_faults, worker_faults
from tests.chaos.harness import ChaosHarness
from tests.chaos.plan import ChaosPlan
from tests.chaos.script import scripted_sessions
from worker.errors import TurnbusError

STAGGER_S: Final = 0.1
"""Interval between the starts of the first sessions, in seconds."""

_RETRY_S: Final = 0.1


class Fault(NamedTuple):
    """A kind of fault."""

    weight: float
    """Relative frequency."""
    act: Callable[[ChaosHarness, Random], Awaitable[bool]]
    """Injects the fault, waits and repairs; returns False if there was no target. It draws its
    choices from the random generator."""


class ProviderFault(NamedTuple):
    """A kind of fault of one provider."""

    weight: float
    act: Callable[[ChaosHarness, Random, str], Awaitable[bool]]
    """The same as of any fault, at the provider of this name."""
    failover: bool = False
    """Whether it tests failover: by default it is injected only if there are several providers."""


FAULTS: Final[Mapping[str, Fault | ProviderFault]] = {
    "kill": Fault(10, worker_faults.kill),
    "kill-all": Fault(1, worker_faults.kill_all),
    "stop": Fault(3, worker_faults.stop),
    "stop-twice": Fault(1, worker_faults.stop_twice),
    "stop-after-claim": Fault(2, worker_faults.stop_after_claim),
    "replace": Fault(2, worker_faults.replace),
    "pause-long": Fault(2, worker_faults.pause_long),
    "pause-short": Fault(3, worker_faults.pause_short),
    "wake-alone": Fault(1, worker_faults.resume_alone),
    "redis-restart": Fault(2, redis_faults.restart),
    "redis-outage": Fault(1, redis_faults.outage),
    "redis-full": Fault(2, redis_faults.full),
    "redis-cut": Fault(3, redis_faults.cut),
    "client-kill": Fault(2, redis_faults.kill_clients),
    "lost-reply": Fault(6, redis_faults.lose_reply),
    "partition": Fault(3, redis_faults.partition),
    "script-flush": Fault(1, redis_faults.flush_scripts),
    "group-destroyed": Fault(1, redis_faults.destroy_group),
    "entry-deleted": Fault(1, redis_faults.delete_entry),
    "entries-trimmed": Fault(1, redis_faults.trim_entries),
    "orphaned": Fault(1, redis_faults.delete_entry_and_kill),
    "stt-cut": ProviderFault(8, provider_faults.cut),
    "stt-cut-at-byte": ProviderFault(5, provider_faults.cut_at_byte),
    "stt-stall": ProviderFault(3, provider_faults.stall),
    "stt-outage": ProviderFault(2, provider_faults.outage),
    "stt-503": ProviderFault(1, provider_faults.answer_503),
    "stt-outage-long": ProviderFault(1, provider_faults.long_outage),
    "stt-refused": ProviderFault(2, provider_faults.refuse, failover=True),
    "stt-half-open": ProviderFault(2, provider_faults.half_open, failover=True),
    "stt-standstill": ProviderFault(2, provider_faults.standstill, failover=True),
    "stt-slow": ProviderFault(2, provider_faults.slow, failover=True),
    "stt-outage-kill": ProviderFault(3, provider_faults.outage_and_kill, failover=True),
    "stt-outage-all": ProviderFault(1, provider_faults.outage_of_all, failover=True),
}
"""Every fault, by name."""


def check_faults(names: tuple[str, ...]) -> None:
    """Raise TurnbusError for a name that is not in the table."""
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise TurnbusError(
            f"unknown faults: {', '.join(unknown)}; the faults are {', '.join(FAULTS)}"
        )


class ScheduledFault(NamedTuple):
    """One scheduled fault."""

    at_s: float
    """Seconds from the first word."""
    name: str
    """Name of the fault in the table."""
    seed: int
    """Seed of its random choices: duration, number and targets."""
    provider: str = ""
    """Name of the provider that fails; empty for other faults."""

    @property
    def kind(self) -> str:
        """Name of the fault, and of the provider."""
        return f"{self.name} {self.provider}".rstrip()


def schedule(plan: ChaosPlan) -> tuple[ScheduledFault, ...]:
    """Draw every fault of a run; the same plan always gives the same schedule.

    All faults are due while a session sends audio, even without delays. If the provider limits the
    sockets, sessions that catch up may end before the last fault. Each fault has its own seed, so
    that the targets of one do not change another.
    """
    rng = Random(f"{plan.seed} schedule")
    provider_rng = Random(f"{plan.seed} providers")
    names = list(plan.faults or _default_faults(plan))
    weights = [FAULTS[name].weight for name in names]
    until_s = audio_s(plan)
    scheduled = []
    at_s = rng.expovariate(1 / plan.every_s)
    while at_s < until_s:
        (name,) = rng.choices(names, weights)
        at_provider = isinstance(FAULTS[name], ProviderFault)
        provider = provider_rng.choice(plan.provider_names) if at_provider else ""
        scheduled.append(ScheduledFault(round(at_s, 2), name, rng.getrandbits(32), provider))
        at_s += rng.expovariate(1 / plan.every_s)
    return tuple(scheduled)


def _default_faults(plan: ChaosPlan) -> Iterator[str]:
    several = len(plan.provider_names) > 1
    for name, fault in FAULTS.items():
        if several or not (isinstance(fault, ProviderFault) and fault.failover):
            yield name


def audio_s(plan: ChaosPlan) -> float:
    """Return the time it takes to send all sessions without faults, in seconds."""
    at_once = min(plan.sessions, plan.connections or plan.sessions)
    ends: list[float] = []
    last = 0.0
    for nth, script in enumerate(scripted_sessions(plan)):
        began = heappop(ends) if nth >= at_once else nth * STAGGER_S
        heappush(ends, began + script.seconds)
        last = max(last, began + script.seconds)
    return last


class FaultInjector:
    """Applies every fault of the schedule as soon as it finds a target, and repairs it."""

    def __init__(self, faults: Sequence[ScheduledFault], harness: ChaosHarness) -> None:
        self._over = anyio.Event()
        self.schedule: Final = tuple(faults)
        self._harness = harness
        self.applied: Final[Counter[str]] = Counter()

    def stop(self) -> None:
        """Cancel the faults that are not due or have no target, because all producers are done."""
        self._over.set()

    async def run(self) -> None:
        """Apply the faults when they are due; return when the last is repaired."""
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for fault in self.schedule:
                with anyio.move_on_at(began + fault.at_s):
                    await self._over.wait()
                    return
                tasks.start_soon(self._apply, fault)

    async def _apply(self, fault: ScheduledFault) -> None:
        rng = Random(fault.seed)
        while not await self._act(fault, rng):
            if self._over.is_set():
                return
            await anyio.sleep(_RETRY_S)
        self.applied[fault.kind] += 1

    async def _act(self, fault: ScheduledFault, rng: Random) -> bool:
        match FAULTS[fault.name]:
            case ProviderFault() as kind:
                return await kind.act(self._harness, rng, fault.provider)
            case kind:
                return await kind.act(self._harness, rng)
