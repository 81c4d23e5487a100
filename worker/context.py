"""What a session needs of the worker that runs it."""

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
from worker.core.frame_limit import FrameLimit
from worker.core.provider_lag import ProviderLag
from worker.errors import SttError
from worker.leases.retries import CrashRetries
from worker.session.backlog import BacklogDrainer
from worker.session.publisher import Retention
from worker.shortage import Shortage
from worker.stalls import StallDetector
from worker.stt.cartesia import Endpoint
from worker.stt.health import ProviderOutage
from worker.supervisor import Supervisor
from worker.telemetry.counters import Counters
from worker.telemetry.logs import SessionName
from worker.telemetry.traces import Tracing

log = logging.getLogger(__name__)


MAX_CONCURRENT_CONNECTS = 50
"""Handshakes with the STT service that may be open at the same time.

A thousand sessions may begin, or lose their sockets, at once. A handshake takes milliseconds of our
CPU, most of it TLS: of fifty together the sessions that run feel little. And a server that listens
with the usual backlog of 100 drops no packet of ours, which would be sent again a second later. At
300 ms each, fifty at once are 160 sessions a second.
"""

KEY_ADVICE = "check CARTESIA_API_KEY or TURNBUS_STT_API_KEY_FILE, and the account's credit"
"""What to do about a refusal that gives no advice of its own."""

CREDENTIALS_RETRY_S = 15.0
"""Age of a refusal of the key after which a worker without sessions tries it again."""

MAX_DEAD_LETTER_BYTES = 16 * 1024
"""Of a refused session entry: more than a good one can have."""


class SessionTimeouts(msgspec.Struct, frozen=True):
    """The times a session goes by."""

    replay_speed: float = 1.5
    """Times real time; 0 is unpaced."""
    park_s: float = 120.0
    """Without audio, after which the socket is let go."""
    idle_s: float = 900.0
    """Without audio, after which the session ends."""
    max_lag_s: float = 600.0
    """Age at which untranscribed audio is dropped; 0 is never."""
    update_interval_ms: int = 500
    """Between two updates of a turn's text of 1,000 characters; 0 is none."""


class CredentialsHealth:
    """Whether the service takes our key; said once, however many sessions learn it."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """What the service says against the key or the credit; None while it takes them."""
        self._since = 0.0

    def rejected(self, error: SttError) -> None:
        """Record a 401, 402 or 403."""
        if self.reason is None:
            if error.advice:
                what = "the STT provider cannot be connected to"
            else:
                what = "the STT provider refuses the API key or its credit"
            advice = error.advice or KEY_ADVICE
            log.error("%s (%s); sessions wait, none is lost; %s", what, error, advice)
        self.reason = str(error)
        self._since = time.monotonic()

    def retry_after_rejection(self) -> None:
        """Forget a refusal that is some time ago, so that a session may try again."""
        if self.reason is not None and time.monotonic() - self._since > CREDENTIALS_RETRY_S:
            self.reason = None

    def accepted(self) -> None:
        """Record a connect."""
        if self.reason is not None:
            log.info("the STT provider is connected to again")
        self.reason = None


class DeadLetterWriter:
    """Writes refused entries to the dead stream, whoever refused them, and logs where they are."""

    def __init__(self, intake: SessionOwnership, health: RedisHealth, faults: Supervisor) -> None:
        self._ownership = intake
        self._health = health
        self._supervisor = faults
        self._waiting: deque[tuple[str, DeadLetter]] = deque()
        self._wake = anyio.Event()
        self._denied = False

    def put(self, name: str, dead: DeadLetter) -> None:
        """Write `dead` as soon as Redis takes it; `name` is its session's, for the log."""
        self._waiting.append((name, dead))
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled; what Redis has not confirmed is written again."""
        try:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                while self._waiting:
                    name, dead = self._waiting[0]
                    where = "not kept: a fault of turnbus"  # which must not hold up the others
                    with self._supervisor.isolate("dead_letters"):
                        where = await self._write(dead)
                    self._waiting.popleft()
                    _log(name, dead, where)
        finally:
            for name, dead in self._waiting:
                _log(name, dead, "not kept: the worker ended first")

    async def _write(self, dead: DeadLetter) -> str:
        """Write an entry and say where it is: one that will not be taken has the log alone."""
        try:
            kept = await retry_while_unavailable(
                self._health, partial(self._ownership.put_dead_letter, dead)
            )
        except ResponseError as error:
            return self._not_written(describe(error))
        self._denied = False
        return f"`turnbus dead` has it as {kept}"

    def _not_written(self, fault: str) -> str:
        if not self._denied:
            log.error("refused entries cannot be kept, only logged: %s", fault)
        self._denied = True
        return f"not kept: {fault}"


def _log(name: str, dead: DeadLetter, where: str) -> None:
    log.warning(
        "%s: refused entry %s of %s: %s (%s); %s",
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
        """Put a refused entry on the dead stream: a session's with its fields, never audio."""
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
    """Write an entry's fields as JSON; empty if there are none, or they are not fit to be kept."""
    if not fields or sum(map(len, chain.from_iterable(fields.items()))) > MAX_DEAD_LETTER_BYTES:
        return ""
    try:
        text = {name.decode(): value.decode() for name, value in fields.items()}
    except UnicodeDecodeError:
        return ""
    return msgspec.json.encode(text).decode()
