"""The parts of a worker that its sessions share."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
from redis.asyncio import Redis

from schemas.audio import SessionEntry
from schemas.keys import Keys
from worker.bus.audio_reader import AudioReader
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
from worker.leases.retries import CrashRetries
from worker.session.backlog import BacklogDrainer
from worker.settings import Settings
from worker.shortage import Shortage
from worker.stt.choice import Candidate, candidates
from worker.stt.health import CredentialsHealth, ProviderOutage
from worker.stt.routes import Route
from worker.supervisor import Supervisor
from worker.telemetry.counters import Counters
from worker.telemetry.traces import Tracing

MAX_CONCURRENT_CONNECTS = 50
"""Maximum concurrent handshakes with the STT provider.

A thousand sessions may start, or lose their sockets, at once. A handshake takes milliseconds of
CPU, mostly for TLS: fifty together hardly delay the running sessions. A server with the usual
listen backlog of 100 drops no packets, which would be resent a second later. At 300 ms each, fifty
concurrent handshakes open 160 sessions a second.
"""


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
    dead_letters: DeadLetterWriter
    tracing: Tracing
    stats: Counters
    supervisor: Supervisor
    connect_slots: anyio.CapacityLimiter = field(
        default_factory=lambda: anyio.CapacityLimiter(MAX_CONCURRENT_CONNECTS)
    )
    credentials: CredentialsHealth = field(default_factory=CredentialsHealth)
    retries: CrashRetries = field(default_factory=CrashRetries)
    provider_outage: ProviderOutage = field(default_factory=ProviderOutage)
    shortage: Shortage = field(default_factory=Shortage)
    backlog: BacklogDrainer = field(default_factory=BacklogDrainer)
    provider_lag: ProviderLag = field(default_factory=ProviderLag)
    without_forced_end: set[str] = field(default_factory=set)
    """Names of providers whose deployment does not know the command that ends a turn."""
    frame_limit: FrameLimit = field(default_factory=FrameLimit)
    stalls: StallDetector = field(default_factory=lambda: StallDetector(time.monotonic()))

    def route_of(self, entry: SessionEntry) -> tuple[Route, Candidate]:
        """Return the route of a session, and what to ask its provider for.

        Raises `EntryError` if no configured provider may serve it.
        """
        candidate = candidates(entry, [route.offer for route in self.routes])[0]
        route = next(each for each in self.routes if each.provider.name == candidate.provider)
        return route, candidate
