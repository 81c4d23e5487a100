"""The metrics of a worker: one table, read on request.

Per chunk, the worker records only plain numbers (`counters`). The event loop reads them on request,
for Prometheus (`prometheus`) and OTLP (`otlp`); both use the same table.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, Never, TypeVar

import anyio
from redis.exceptions import ResponseError

from worker import build
from worker.core.breaker import BreakerState
from worker.core.phases import Phase
from worker.telemetry.counters import Counters, Histogram

if TYPE_CHECKING:  # `worker.worker` imports other modules of this package
    from worker.worker import Worker

log = logging.getLogger(__name__)

DEMAND_S = 5.0
"""Interval between readings of the sessions stream's length."""


class WorkerGauges:
    """Gauges of one worker."""

    def __init__(self, worker: "Worker") -> None:
        self.worker = worker
        self.stats = worker.context.stats
        self.health = worker.context.health
        self._demand: int | None = None

    async def follow_demand(self) -> None:
        """Read the number of sessions from Redis periodically, until cancelled or denied."""
        redis, key = self.worker.context.redis, self.worker.context.keys.sessions
        try:
            while True:
                self._demand = await self.health.retry(partial(redis.xlen, key))
                await anyio.sleep(DEMAND_S)
        except ResponseError as error:  # the worker can run without it
            self._demand = None
            log.warning(
                "demand is no longer measured: cannot read the length of %s (%s)", key, error
            )

    @property
    def demand(self) -> int | None:
        """Number of sessions of all workers; None if it is unknown."""
        return self._demand if self.health.up else None

    @property
    def phases(self) -> Mapping[str, float]:
        """Number of sessions, by phase."""
        phases = Counter({phase.value: 0 for phase in Phase if phase is not Phase.OVER})
        phases.update(s.phase.value for s in self.worker.running if s.phase is not Phase.OVER)
        return phases

    @property
    def open_sockets(self) -> Mapping[str, float]:
        """Number of open sockets, by provider."""
        sockets = Counter({route.provider.name: 0 for route in self.worker.context.routes})
        live = (Phase.LIVE, Phase.FLUSHING)
        sockets.update(each.provider for each in self.worker.running if each.phase in live)
        return sockets

    @property
    def avoided(self) -> Mapping[str, float]:
        """1 for each provider whose breaker is not closed, 0 for the others."""
        states = self.worker.context.breakers.states()
        return {name: int(state is not BreakerState.CLOSED) for name, state in states.items()}

    @property
    def lag_s(self) -> float:
        """The largest lag of any session."""
        return max((session.lag_s for session in self.worker.running), default=0.0)

    @property
    def outage_s(self) -> float:
        """Seconds since Redis last answered; 0 while it does."""
        return 0.0 if self.health.up else time.monotonic() - self.health.since


Kind = Literal["counter", "updowncounter", "gauge", "histogram"]
Value = float | Mapping[str, float] | Histogram
"""A number, numbers by attribute value, or a histogram."""


G = TypeVar("G", contravariant=True)
"""The object whose values are read: `WorkerGauges`, or that of another process."""


class Instrument(NamedTuple, Generic[G]):
    """One metric: its OpenTelemetry name, and how to read its value."""

    name: str
    kind: Kind
    unit: str
    """Unit of the value in UCUM."""
    description: str
    read: Callable[[G], Value | None]
    """Returns None if the value is unknown."""
    attribute: str = ""
    """Attribute that distinguishes the values, if there are several."""
    constants: Mapping[str, str] = {}
    """Attributes that have one value for the life of the process."""


class Sample(NamedTuple):
    """The value of one metric at one time."""

    instrument: Instrument[Never]
    value: Value


def _count(
    name: str, unit: str, description: str, read: Callable[[Counters], Value], attribute: str = ""
) -> Instrument[WorkerGauges]:
    return Instrument(
        name, "counter", unit, description, lambda gauges: read(gauges.stats), attribute
    )


def _durations(
    name: str, description: str, read: Callable[[Counters], Histogram]
) -> Instrument[WorkerGauges]:
    return Instrument(name, "histogram", "s", description, lambda gauges: read(gauges.stats))


INSTRUMENTS: tuple[Instrument[WorkerGauges], ...] = (
    # -- load and ownership
    Instrument(
        "turnbus.sessions",
        "updowncounter",
        "{session}",
        "Sessions this worker owns, by phase",
        lambda gauges: gauges.phases,
        "turnbus.session.phase",
    ),
    Instrument(
        "turnbus.sessions.limit",
        "updowncounter",
        "{session}",
        "Maximum sessions of this worker",
        lambda gauges: gauges.worker.readiness.capacity,
    ),
    Instrument(
        "turnbus.workers.ready",
        "updowncounter",
        "{worker}",
        "1 if this worker takes new sessions, 0 if not",
        lambda gauges: int(gauges.worker.readiness.ready),
    ),
    Instrument(
        "turnbus.demand",
        "gauge",
        "{session}",
        "Sessions on the bus, owned or not; every worker reports the same number",
        lambda gauges: gauges.demand,
    ),
    _count(
        "turnbus.takeovers",
        "{session}",
        "Sessions taken over, by cause",
        lambda stats: stats.takeovers,
        "turnbus.takeover.cause",
    ),
    # -- latency
    Instrument(
        "turnbus.lag",
        "gauge",
        "s",
        "Age of the oldest audio that waits to be sent, of any session",
        lambda gauges: gauges.lag_s,
    ),
    _durations(
        "turnbus.chunk.lag",
        "Time from appending a chunk to sending it, excluding sessions that are catching up",
        lambda stats: stats.chunk_lag,
    ),
    _durations(
        "turnbus.turn.latency",
        "Time from sending a turn's last sound to appending its turn.end",
        lambda stats: stats.turn_latency,
    ),
    # -- Redis
    _durations(
        "turnbus.commit.duration",
        "Time from creating an event to appending it",
        lambda stats: stats.commit_latency,
    ),
    _count(
        "turnbus.commits",
        "{commit}",
        "Commits answered, by verdict; fenced: another worker owns the session",
        lambda stats: stats.commits,
        "turnbus.commit.verdict",
    ),
    _count(
        "turnbus.events",
        "{event}",
        "Events created, by type",
        lambda stats: stats.events,
        "turnbus.event.type",
    ),
    Instrument(
        "turnbus.redis.outage",
        "gauge",
        "s",
        "Time since Redis last answered; 0 while it is available",
        lambda gauges: gauges.outage_s,
    ),
    _count(
        "turnbus.refused",
        "{entry}",
        "Entries rejected to the dead-letter stream, by reason",
        lambda stats: stats.rejected_entries,
        "turnbus.refused.reason",
    ),
    # -- audio
    _count(
        "turnbus.chunks",
        "{chunk}",
        "Audio entries read, including replays",
        lambda stats: stats.chunks,
    ),
    _count(
        "turnbus.chunks.repeated",
        "{chunk}",
        "Chunks dropped because their producer had sent their seq before",
        lambda stats: stats.chunks_repeated,
    ),
    _count(
        "turnbus.audio.sent",
        "By",
        "Audio sent to the provider, including replays and filler",
        lambda stats: stats.bytes,
    ),
    _count(
        "turnbus.audio.replayed",
        "s",
        "Audio that has to be sent again, on another socket",
        lambda stats: stats.replayed_s,
    ),
    Instrument(
        "turnbus.audio.uncommitted",
        "updowncounter",
        "By",
        "Audio read that no published event covers yet: what a reconnect replays",
        lambda gauges: sum(session.read_uncommitted_bytes for session in gauges.worker.running),
    ),
    _count(
        "turnbus.audio.missing",
        "s",
        "Audio announced as not transcribed, by reason",
        lambda stats: {reason: ms / 1000 for reason, ms in stats.missing_ms.items()},
        "turnbus.gap.reason",
    ),
    _count(
        "turnbus.gaps",
        "{gap}",
        "Gaps announced, by reason",
        lambda stats: stats.gaps,
        "turnbus.gap.reason",
    ),
    # -- the provider
    _count(
        "turnbus.connects",
        "{connect}",
        "Connects, by outcome: ok, or the error class",
        lambda stats: stats.connects,
        "turnbus.connect.outcome",
    ),
    _durations(
        "turnbus.connect.duration",
        "Time from the start of a connect to connected",
        lambda stats: stats.connect_s,
    ),
    _count(
        "turnbus.reconnects",
        "{connect}",
        "Sockets lost, by error class; a permanent error ends the session",
        lambda stats: stats.sockets_lost,
        "turnbus.fault.class",
    ),
    _count(
        "turnbus.failovers",
        "{session}",
        "Sessions that left a provider because it failed, by its name",
        lambda stats: stats.failovers,
        "turnbus.provider",
    ),
    Instrument(
        "turnbus.provider.sockets",
        "updowncounter",
        "{connection}",
        "Open sockets of this worker, by provider",
        lambda gauges: gauges.open_sockets,
        "turnbus.provider",
    ),
    Instrument(
        "turnbus.provider.avoided",
        "gauge",
        "{provider}",
        "1 while the breaker of a provider is open, 0 while it is closed",
        lambda gauges: gauges.avoided,
        "turnbus.provider",
    ),
    Instrument(
        "turnbus.gate.waiting",
        "updowncounter",
        "{session}",
        "Sessions that wait for a permit to open a socket",
        lambda gauges: gauges.worker.context.permits.waiting,
    ),
    _durations(
        "turnbus.gate.wait",
        "Time waited for a permit to open a socket",
        lambda stats: stats.gate_wait,
    ),
    _count(
        "turnbus.provider.ignored",
        "{message}",
        "Provider messages of a type unknown to this version",
        lambda stats: stats.provider_unknown,
    ),
    _count(
        "turnbus.provider.unreadable",
        "{message}",
        "Provider messages that are not fully readable",
        lambda stats: stats.provider_unreadable,
    ),
    # -- the worker itself
    _durations(
        "turnbus.loop.delay",
        "Delay of the event loop's ticker wake-ups",
        lambda stats: stats.loop_delay,
    ),
    _count(
        "turnbus.faults",
        "{fault}",
        "Internal errors that the worker survived, by component; its log has the tracebacks",
        lambda stats: stats.internal_errors,
        "turnbus.fault.part",
    ),
    Instrument(
        "turnbus.build.info",
        "gauge",
        "{worker}",
        "1, with the version, and `compiled` or `python` as the form of the core",
        lambda _: 1,
        constants=build.describe(),
    ),
    _count(
        "process.cpu.time",
        "s",
        "CPU time of this worker, user and system",
        lambda _: time.process_time(),
    ),
)
"""All metrics of a worker."""


def samples(gauges: WorkerGauges) -> list[Sample]:
    """Return the values of all metrics of a worker that are known."""
    return read_all(INSTRUMENTS, gauges)


def read_all(instruments: Iterable[Instrument[G]], source: G) -> list[Sample]:
    """Return the values of the instruments that are known."""
    values = ((instrument, instrument.read(source)) for instrument in instruments)
    return [Sample(instrument, value) for instrument, value in values if value is not None]
