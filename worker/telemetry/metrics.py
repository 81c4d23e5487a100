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
        "Sessions this worker takes at most",
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
        "Sessions taken over, by what became of their owner",
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
        "From the appending of a chunk to its being sent, of sessions that do not catch up",
        lambda meter: meter.stats.chunk_lag,
    ),
    Instrument(
        "turnbus.turn.latency",
        "histogram",
        "s",
        "From the last sound of a turn being sent to its turn.end being appended",
        lambda meter: meter.stats.turn_latency,
    ),
    # -- Redis
    Instrument(
        "turnbus.commit.duration",
        "histogram",
        "s",
        "From an event's making to its being appended",
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
        "Events made, by type",
        lambda meter: meter.stats.events,
        "turnbus.event.type",
    ),
    Instrument(
        "turnbus.redis.outage",
        "gauge",
        "s",
        "How long Redis has not answered; 0 while it does",
        lambda meter: meter.outage_s,
    ),
    Instrument(
        "turnbus.refused",
        "counter",
        "{entry}",
        "Entries put on the dead stream, by reason",
        lambda meter: meter.stats.rejected_entries,
        "turnbus.refused.reason",
    ),
    # -- audio
    Instrument(
        "turnbus.chunks",
        "counter",
        "{chunk}",
        "Entries with audio taken in, replays included",
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
        "Audio sent to the service, replays and filler included",
        lambda meter: meter.stats.bytes,
    ),
    Instrument(
        "turnbus.audio.replayed",
        "counter",
        "s",
        "Audio that was sent and has to be sent again, to another socket",
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
        "Connects tried, by outcome: ok, or the class of the fault",
        lambda meter: meter.stats.connects,
        "turnbus.connect.outcome",
    ),
    Instrument(
        "turnbus.connect.duration",
        "histogram",
        "s",
        "From dialling to connected",
        lambda meter: meter.stats.connect_s,
    ),
    Instrument(
        "turnbus.reconnects",
        "counter",
        "{connect}",
        "Sockets lost, by the class of the fault; a permanent one ends its session",
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
        "Waits for a permit to open a socket that are over",
        lambda meter: meter.stats.gate_wait,
    ),
    Instrument(
        "turnbus.provider.ignored",
        "counter",
        "{message}",
        "Messages of the service that this version does not know",
        lambda meter: meter.stats.provider_unknown,
    ),
    Instrument(
        "turnbus.provider.unreadable",
        "counter",
        "{message}",
        "Messages of the service that cannot be read, or in part only",
        lambda meter: meter.stats.provider_unreadable,
    ),
    # -- the worker itself
    Instrument(
        "turnbus.loop.delay",
        "histogram",
        "s",
        "How late the event loop woke the worker's clock",
        lambda meter: meter.stats.loop_delay,
    ),
    Instrument(
        "turnbus.faults",
        "counter",
        "{fault}",
        "Faults of turnbus that the worker survived, by the part of it; its log has the tracebacks",
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
