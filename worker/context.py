"""The parts of a worker that its sessions share."""

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import anyio
import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from schemas.audio import Fields, TurnConfig
from schemas.keys import Keys
from schemas.turns import DeadLetter
from worker.bus.audio_reader import AudioReader
from worker.bus.client.connection import RedisHealth, describe, retry_while_unavailable
from worker.bus.clock import RedisClock
from worker.bus.committer import Committer
from worker.bus.lanes import LaneRegistry
from worker.bus.ownership import SessionOwnership
from worker.bus.permits import ConnectionPermits
from worker.core.provider_lag import ProviderLag
from worker.core.send_limits import FrameLimit
from worker.event_loop import StallDetector
from worker.leases.retries import CrashRetries
from worker.session.backlog import BacklogDrainer
from worker.shortage import Shortage
from worker.stt.cartesia import Endpoint
from worker.stt.health import CredentialsHealth, ProviderOutage
from worker.supervisor import Supervisor
from worker.telemetry.counters import Counters
from worker.telemetry.logs import SessionName
from worker.telemetry.traces import Tracing

log = logging.getLogger(__name__)

MAX_CONCURRENT_CONNECTS = 50
"""Maximum concurrent handshakes with the STT provider.

A thousand sessions may start, or lose their sockets, at once. A handshake takes milliseconds of
CPU, mostly for TLS: fifty together hardly delay the running sessions. A server with the usual
listen backlog of 100 drops no packets, which would be resent a second later. At 300 ms each, fifty
concurrent handshakes open 160 sessions a second.
"""

MAX_DEAD_LETTER_BYTES = 16 * 1024
"""Maximum size of a rejected session entry that is kept; a valid entry is always smaller."""


class Retention(msgspec.Struct, frozen=True):
    """How long a session's keys are kept."""

    state_s: int
    turns_s: int
    turns_maxlen: int


class SessionTimeouts(msgspec.Struct, frozen=True):
    """The timeouts and intervals of a session."""

    replay_speed: float = 1.5
    """Replay speed as a multiple of real time; 0 disables pacing."""
    park_s: float = 120.0
    """Time without audio after which the worker closes the socket."""
    idle_s: float = 900.0
    """Time without audio after which the session ends."""
    max_lag_s: float = 600.0
    """Age at which untranscribed audio is dropped; 0 disables it."""
    update_interval_ms: int = 500
    """Interval between updates of a turn of 1,000 characters; 0 disables the limit."""


class DeadLetterWriter:
    """Writes rejected entries to the dead-letter stream and logs their ids."""

    def __init__(
        self, ownership: SessionOwnership, health: RedisHealth, supervisor: Supervisor
    ) -> None:
        self._ownership = ownership
        self._health = health
        self._supervisor = supervisor
        self._waiting: deque[tuple[str, DeadLetter]] = deque()
        self._wake = anyio.Event()
        self._denied = False

    def put(self, name: str, dead: DeadLetter) -> None:
        """Queue `dead` for writing; `name` identifies its session in the log."""
        self._waiting.append((name, dead))
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled; retry what Redis has not confirmed."""
        try:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                while self._waiting:
                    name, dead = self._waiting[0]
                    where = "not kept: internal error"  # it must not delay the others
                    with self._supervisor.isolate("dead_letters"):
                        where = await self._write(dead)
                    self._waiting.popleft()
                    _log(name, dead, where)
        finally:
            for name, dead in self._waiting:
                _log(name, dead, "not kept: the worker stopped first")

    async def _write(self, dead: DeadLetter) -> str:
        """Write an entry and return where it is; an entry that Redis rejects is only logged."""
        try:
            kept = await retry_while_unavailable(
                self._health, partial(self._ownership.put_dead_letter, dead)
            )
        except ResponseError as error:
            return self._not_written(describe(error))
        self._denied = False
        return f"`turnbus dead` has it as {kept}"

    def _not_written(self, reason: str) -> str:
        if not self._denied:
            log.error("cannot write dead letters, rejected entries are only logged (%s)", reason)
        self._denied = True
        return f"not kept: {reason}"


def _log(name: str, dead: DeadLetter, where: str) -> None:
    log.warning(
        "%s: rejected entry %s of %s: %s (%s); %s",
        *(name, dead.id, dead.stream, dead.detail, dead.reason, where),
    )


@dataclass(frozen=True)
class WorkerContext:
    """The parts of one worker that its sessions share."""

    worker_id: str
    redis: Redis
    keys: Keys
    health: RedisHealth
    clock: RedisClock
    ownership: SessionOwnership
    reader: AudioReader
    committer: Committer
    permits: ConnectionPermits
    lanes: LaneRegistry
    retention: Retention
    endpoint: Endpoint
    model: str
    turn: TurnConfig
    timeouts: SessionTimeouts
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
    frame_limit: FrameLimit = field(default_factory=FrameLimit)
    stalls: StallDetector = field(default_factory=lambda: StallDetector(time.monotonic()))

    def dead_letter(
        self, entry: str, stream: str, session: str, reason: str, detail: str, fields: Fields
    ) -> None:
        """Write a rejected entry as a dead letter; only a session entry keeps its fields."""
        self.stats.rejected_entries[reason] += 1
        traceparent = fields.get(b"traceparent", b"").decode("ascii", "replace")
        name = SessionName(session, traceparent) if session else "no session"
        self.dead_letters.put(
            name,
            DeadLetter(
                id=entry,
                stream=stream,
                session=session,
                reason=reason,
                detail=detail,
                size=sum(len(value) for value in fields.values()),
                entry=_as_json(fields) if stream == self.keys.sessions else "",
            ),
        )


def _as_json(fields: Fields) -> str:
    """Return an entry's fields as JSON; empty if they are missing, too large or not UTF-8."""
    if not fields or sum(map(len, chain.from_iterable(fields.items()))) > MAX_DEAD_LETTER_BYTES:
        return ""
    try:
        text = {name.decode(): value.decode() for name, value in fields.items()}
    except UnicodeDecodeError:
        return ""
    return msgspec.json.encode(text).decode()
