"""The parts of a worker that its sessions share."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from redis.asyncio import Redis

from schemas.audio import SessionEntry
from schemas.keys import Keys
from worker.bus.audio_reader import AudioReader
from worker.bus.breaker import Breakers
from worker.bus.client.connection import RedisHealth
from worker.bus.clock import RedisClock
from worker.bus.committer import Committer
from worker.bus.dead_letters import DeadLetterWriter
from worker.bus.ownership import SessionLeases
from worker.bus.permits import ConnectionPermits
from worker.bus.registry import WorkerRegistry
from worker.core.send_limits import FrameLimit
from worker.core.turn_boundary import ProviderLag
from worker.event_loop import StallDetector
from worker.leases.declined import DeclinedSessions
from worker.leases.retries import CrashRetries
from worker.session.backlog import BacklogDrainer
from worker.settings import Settings
from worker.shortage import Shortage
from worker.stt.choice import candidates
from worker.stt.health import ProviderHealth
from worker.stt.routes import Choice, Route
from worker.supervisor import Supervisor
from worker.telemetry.counters import Counters
from worker.telemetry.traces import Tracing


@dataclass(frozen=True)
class WorkerContext:
    """The parts of one worker that its sessions share."""

    settings: Settings
    redis: Redis
    keys: Keys
    health: RedisHealth
    clock: RedisClock
    leases: SessionLeases
    reader: AudioReader
    committer: Committer
    permits: ConnectionPermits
    registry: WorkerRegistry
    routes: Sequence[Route]
    """The providers that sessions may use, the preferred one first; at least one."""
    provider_health: Mapping[str, ProviderHealth]
    """Health of each of these, by name."""
    breakers: Breakers
    dead_letters: DeadLetterWriter
    tracing: Tracing
    stats: Counters
    supervisor: Supervisor
    retries: CrashRetries = field(default_factory=CrashRetries)
    declined: DeclinedSessions = field(default_factory=DeclinedSessions)
    shortage: Shortage = field(default_factory=Shortage)
    backlog: BacklogDrainer = field(default_factory=BacklogDrainer)
    provider_lag: ProviderLag = field(default_factory=ProviderLag)
    without_forced_end: set[str] = field(default_factory=set)
    """Names of providers whose deployment does not know the command that ends a turn."""
    frame_limit: FrameLimit = field(default_factory=FrameLimit)
    stalls: StallDetector = field(default_factory=lambda: StallDetector(time.monotonic()))

    @property
    def rejected_credentials(self) -> str | None:
        """Why the providers reject their keys; None if one of them does not."""
        reasons = [each.credentials.reason for each in self.provider_health.values()]
        return "; ".join(reason or "" for reason in reasons) if all(reasons) else None

    def choices_of(self, entry: SessionEntry) -> list[Choice]:
        """Return the providers that may serve a session, the preferred one first.

        Raises `EntryError` if no configured provider may serve it.
        """
        by_name = {route.provider.name: route for route in self.routes}
        found = candidates(entry, [route.offer for route in self.routes])
        return [Choice(by_name[candidate.provider], candidate) for candidate in found]
