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
from schemas.turns import DeadEntry
from worker.bus.clock import BusClock
from worker.bus.commits import Committer
from worker.bus.connection import BusHealth, describe, patiently
from worker.bus.gate import Gate
from worker.bus.intake import Intake
from worker.bus.lanes import Lanes
from worker.bus.reader import AudioReader
from worker.catchup import CatchUp
from worker.core.frame_limit import FrameLimit
from worker.core.lag import UsualLag
from worker.crashes import Crashes
from worker.errors import SttError
from worker.keepers import Faults
from worker.outage import Outage
from worker.sessions.publisher import Retention
from worker.shortage import Shortage
from worker.stt.cartesia import Service
from worker.telemetry.logs import SessionName
from worker.telemetry.spans import Tracing
from worker.telemetry.stats import Stats
from worker.wakefulness import Wakefulness

log = logging.getLogger(__name__)


CONNECTS_AT_ONCE = 50
"""Handshakes with the STT service that may be open at the same time.

A thousand sessions may begin, or lose their sockets, at once. A handshake takes milliseconds of our
CPU, most of it TLS: of fifty together the sessions that run feel little. And a server that listens
with the usual backlog of 100 drops no packet of ours, which would be sent again a second later. At
300 ms each, fifty at once are 160 sessions a second.
"""

KEY_ADVICE = "check CARTESIA_API_KEY or TURNBUS_STT_API_KEY_FILE, and the account's credit"
"""What to do about a refusal that gives no advice of its own."""

DOUBT_AFTER_S = 15.0
"""Age of a refusal of the key after which a worker without sessions tries it again."""

KEPT_BYTES = 16 * 1024
"""Of a refused session entry: more than a good one can have."""


class Pace(msgspec.Struct, frozen=True):
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


class Credentials:
    """Whether the service takes our key; said once, however many sessions learn it."""

    def __init__(self) -> None:
        self.fault: str | None = None
        """What the service says against the key or the credit; None while it takes them."""
        self._since = 0.0

    def refused(self, error: SttError) -> None:
        """Record a 401, 402 or 403."""
        if self.fault is None:
            if error.advice:
                what = "the STT provider cannot be connected to"
            else:
                what = "the STT provider refuses the API key or its credit"
            advice = error.advice or KEY_ADVICE
            log.error("%s (%s); sessions wait, none is lost; %s", what, error, advice)
        self.fault = str(error)
        self._since = time.monotonic()

    def doubt(self) -> None:
        """Forget a refusal that is some time ago, so that a session may try again."""
        if self.fault is not None and time.monotonic() - self._since > DOUBT_AFTER_S:
            self.fault = None

    def accepted(self) -> None:
        """Record a connect."""
        if self.fault is not None:
            log.info("the STT provider is connected to again")
        self.fault = None


class Undertaker:
    """Writes refused entries to the dead stream, whoever refused them, and logs where they are."""

    def __init__(self, intake: Intake, health: BusHealth, faults: Faults) -> None:
        self._intake = intake
        self._health = health
        self._faults = faults
        self._waiting: deque[tuple[str, DeadEntry]] = deque()
        self._wake = anyio.Event()
        self._denied = False

    def bury(self, name: str, dead: DeadEntry) -> None:
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
                    with self._faults.contained("undertaker"):
                        where = await self._keep(dead)
                    self._waiting.popleft()
                    _tell(name, dead, where)
        finally:
            for name, dead in self._waiting:
                _tell(name, dead, "not kept: the worker ended first")

    async def _keep(self, dead: DeadEntry) -> str:
        """Write an entry and say where it is: one that will not be taken has the log alone."""
        try:
            kept = await patiently(self._health, partial(self._intake.bury, dead))
        except ResponseError as error:
            return self._not_kept(describe(error))
        self._denied = False
        return f"`turnbus dead` has it as {kept}"

    def _not_kept(self, fault: str) -> str:
        if not self._denied:
            log.error("refused entries cannot be kept, only logged: %s", fault)
        self._denied = True
        return f"not kept: {fault}"


def _tell(name: str, dead: DeadEntry, where: str) -> None:
    log.warning(
        "%s: refused entry %s of %s: %s (%s); %s",
        *(name, dead.id, dead.stream, dead.detail, dead.reason, where),
    )


@dataclass(frozen=True)
class Host:
    """The parts of one worker that its sessions share."""

    worker_id: str
    redis: Redis
    keys: Keys
    health: BusHealth
    clock: BusClock
    intake: Intake
    reader: AudioReader
    committer: Committer
    gate: Gate
    lanes: Lanes
    retention: Retention
    service: Service
    model: str
    turn: TurnConfig
    pace: Pace
    undertaker: Undertaker
    tracing: Tracing
    stats: Stats
    faults: Faults
    connects: anyio.CapacityLimiter = field(
        default_factory=lambda: anyio.CapacityLimiter(CONNECTS_AT_ONCE)
    )
    credentials: Credentials = field(default_factory=Credentials)
    crashes: Crashes = field(default_factory=Crashes)
    outage: Outage = field(default_factory=Outage)
    shortage: Shortage = field(default_factory=Shortage)
    catch_up: CatchUp = field(default_factory=CatchUp)
    usual_lag: UsualLag = field(default_factory=UsualLag)
    frame_limit: FrameLimit = field(default_factory=FrameLimit)
    wakefulness: Wakefulness = field(default_factory=lambda: Wakefulness(time.monotonic()))

    def bury(
        self, entry: str, stream: str, session: str, reason: str, detail: str, fields: Fields
    ) -> None:
        """Put a refused entry on the dead stream: a session's with its fields, never audio."""
        self.stats.refused_entries[reason] += 1
        traceparent = fields.get(b"traceparent", b"").decode("ascii", "replace")
        name = SessionName(session, traceparent) if session else "no session"
        self.undertaker.bury(
            name,
            DeadEntry(
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
    if not fields or sum(map(len, chain.from_iterable(fields.items()))) > KEPT_BYTES:
        return ""
    try:
        text = {name.decode(): value.decode() for name, value in fields.items()}
    except UnicodeDecodeError:
        return ""
    return msgspec.json.encode(text).decode()
