"""The metrics of a worker: one table, read on request.

Per chunk, the worker records only plain numbers (`counters`): an OpenTelemetry counter costs four
microseconds an increment, a tenth of a chunk's budget. Observable instruments are no alternative:
there is no observable histogram, and their callbacks run in a thread of the SDK while the event
loop changes the data. So the event loop reads the samples, and Prometheus (`prometheus`) and OTLP
(`otlp`) use the same table.
"""

import time
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import msgspec

from worker.telemetry.counters import Histogram
from worker.telemetry.gauges import WorkerGauges

Kind = Literal["counter", "updowncounter", "gauge", "histogram"]
Value = float | Mapping[str, float] | Histogram | None
"""A number, numbers by attribute value, or a histogram; None if it is unknown."""


class Instrument(NamedTuple):
    """One metric: its OpenTelemetry name, and how to read its value."""

    name: str
    kind: Kind
    unit: str
    """Unit of the value in UCUM."""
    description: str
    read: Callable[[WorkerGauges], Value]
    attribute: str = ""
    """Attribute that distinguishes the values, if there are several."""


class Sample(msgspec.Struct, frozen=True):
    """The value of one metric at one time."""

    instrument: Instrument
    value: float | Mapping[str, float] | Histogram


INSTRUMENTS = (
    # -- load and ownership
    Instrument(
        "turnbus.sessions",
        "updowncounter",
        "{session}",
        "Sessions this worker owns, by phase",
        lambda meter: meter.phases,
        "turnbus.session.phase",
    ),
    Instrument(
        "turnbus.sessions.limit",
        "updowncounter",
        "{session}",
        "Maximum sessions of this worker",
        lambda meter: meter.worker.readiness.capacity,
    ),
    Instrument(
        "turnbus.workers.ready",
        "updowncounter",
        "{worker}",
        "1 if this worker takes new sessions, 0 if not",
        lambda meter: int(meter.worker.readiness.ready),
    ),
    Instrument(
        "turnbus.demand",
        "gauge",
        "{session}",
        "Sessions on the bus, owned or not; every worker reports the same number",
        lambda meter: meter.demand,
    ),
    Instrument(
        "turnbus.takeovers",
        "counter",
        "{session}",
        "Sessions taken over, by cause",
        lambda meter: meter.stats.takeovers,
        "turnbus.takeover.cause",
    ),
    # -- latency
    Instrument(
        "turnbus.lag",
        "gauge",
        "s",
        "Age of the oldest audio that waits to be sent, of any session",
        lambda meter: meter.lag_s,
    ),
    Instrument(
        "turnbus.chunk.lag",
        "histogram",
        "s",
        "Time from appending a chunk to sending it, excluding sessions that are catching up",
        lambda meter: meter.stats.chunk_lag,
    ),
    Instrument(
        "turnbus.turn.latency",
        "histogram",
        "s",
        "Time from sending a turn's last sound to appending its turn.end",
        lambda meter: meter.stats.turn_latency,
    ),
    # -- Redis
    Instrument(
        "turnbus.commit.duration",
        "histogram",
        "s",
        "Time from creating an event to appending it",
        lambda meter: meter.stats.commit_latency,
    ),
    Instrument(
        "turnbus.commits",
        "counter",
        "{commit}",
        "Commits answered, by verdict; fenced: another worker owns the session",
        lambda meter: meter.stats.commits,
        "turnbus.commit.verdict",
    ),
    Instrument(
        "turnbus.events",
        "counter",
        "{event}",
        "Events created, by type",
        lambda meter: meter.stats.events,
        "turnbus.event.type",
    ),
    Instrument(
        "turnbus.redis.outage",
        "gauge",
        "s",
        "Time since Redis last answered; 0 while it is available",
        lambda meter: meter.outage_s,
    ),
    Instrument(
        "turnbus.refused",
        "counter",
        "{entry}",
        "Entries rejected to the dead-letter stream, by reason",
        lambda meter: meter.stats.rejected_entries,
        "turnbus.refused.reason",
    ),
    # -- audio
    Instrument(
        "turnbus.chunks",
        "counter",
        "{chunk}",
        "Audio entries read, including replays",
        lambda meter: meter.stats.chunks,
    ),
    Instrument(
        "turnbus.chunks.repeated",
        "counter",
        "{chunk}",
        "Chunks dropped because their producer had sent their seq before",
        lambda meter: meter.stats.chunks_repeated,
    ),
    Instrument(
        "turnbus.audio.sent",
        "counter",
        "By",
        "Audio sent to the provider, including replays and filler",
        lambda meter: meter.stats.bytes,
    ),
    Instrument(
        "turnbus.audio.replayed",
        "counter",
        "s",
        "Audio that has to be sent again, on another socket",
        lambda meter: meter.stats.replayed_s,
    ),
    Instrument(
        "turnbus.audio.uncommitted",
        "updowncounter",
        "By",
        "Audio read that no published event covers yet: what a reconnect replays",
        lambda meter: sum(session.uncommitted_bytes for session in meter.worker.running),
    ),
    Instrument(
        "turnbus.audio.missing",
        "counter",
        "s",
        "Audio announced as not transcribed, by reason",
        lambda meter: {reason: ms / 1000 for reason, ms in meter.stats.missing_ms.items()},
        "turnbus.gap.reason",
    ),
    Instrument(
        "turnbus.gaps",
        "counter",
        "{gap}",
        "Gaps announced, by reason",
        lambda meter: meter.stats.gaps,
        "turnbus.gap.reason",
    ),
    # -- the provider
    Instrument(
        "turnbus.connects",
        "counter",
        "{connect}",
        "Connects, by outcome: ok, or the error class",
        lambda meter: meter.stats.connects,
        "turnbus.connect.outcome",
    ),
    Instrument(
        "turnbus.connect.duration",
        "histogram",
        "s",
        "Time from the start of a connect to connected",
        lambda meter: meter.stats.connect_s,
    ),
    Instrument(
        "turnbus.reconnects",
        "counter",
        "{connect}",
        "Sockets lost, by error class; a permanent error ends the session",
        lambda meter: meter.stats.sockets_lost,
        "turnbus.fault.class",
    ),
    Instrument(
        "turnbus.gate.waiting",
        "updowncounter",
        "{session}",
        "Sessions that wait for a permit to open a socket",
        lambda meter: meter.worker.context.permits.waiting,
    ),
    Instrument(
        "turnbus.gate.wait",
        "histogram",
        "s",
        "Time waited for a permit to open a socket",
        lambda meter: meter.stats.gate_wait,
    ),
    Instrument(
        "turnbus.provider.ignored",
        "counter",
        "{message}",
        "Provider messages of a type unknown to this version",
        lambda meter: meter.stats.provider_unknown,
    ),
    Instrument(
        "turnbus.provider.unreadable",
        "counter",
        "{message}",
        "Provider messages that are not fully readable",
        lambda meter: meter.stats.provider_unreadable,
    ),
    # -- the worker itself
    Instrument(
        "turnbus.loop.delay",
        "histogram",
        "s",
        "Delay of the event loop's ticker wake-ups",
        lambda meter: meter.stats.loop_delay,
    ),
    Instrument(
        "turnbus.faults",
        "counter",
        "{fault}",
        "Internal errors that the worker survived, by component; its log has the tracebacks",
        lambda meter: meter.stats.internal_errors,
        "turnbus.fault.part",
    ),
    Instrument(
        "process.cpu.time",
        "counter",
        "s",
        "CPU time of this worker, user and system",
        lambda _: time.process_time(),
    ),
)
"""All metrics."""


def samples(meter: WorkerGauges) -> list[Sample]:
    """Return the values of all metrics that are known."""
    values = ((instrument, instrument.read(meter)) for instrument in INSTRUMENTS)
    return [Sample(instrument, value) for instrument, value in values if value is not None]
