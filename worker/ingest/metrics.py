"""The metrics of a gateway: one table, read on request, as that of a worker."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from worker import build
from worker.ingest.audiosocket import AudioSocketPort
from worker.ingest.calls import Calls
from worker.ingest.counters import IngestCounters
from worker.telemetry.metrics import Instrument, Value, read_all
from worker.telemetry.prometheus import render

_AUDIOSOCKET_STATUSES: Final = {
    "address": "403",
    "full": "503",
    "no_uuid": "400",
    "protocol": "400",
}
"""HTTP status by the reason of a closed connection; a refused call is counted by `Calls`."""


class GatewayGauges:
    """What the metrics are read from."""

    def __init__(
        self,
        counters: IngestCounters,
        calls: Calls,
        max_calls: int,
        is_ready: Callable[[], bool],
        outage_s: Callable[[], float],
    ) -> None:
        self.counters = counters
        self.calls = calls
        self.max_calls = max_calls
        self.is_ready = is_ready
        self.outage_s = outage_s
        self.audiosocket: AudioSocketPort | None = None
        """The AudioSocket port, if it is on."""

    @property
    def refused(self) -> Counter[str]:
        """Calls refused, by HTTP status; AudioSocket connections by the one that fits."""
        refused = self.counters.refused.copy()
        for reason, count in (self.audiosocket.refused if self.audiosocket else {}).items():
            if reason in _AUDIOSOCKET_STATUSES:
                refused[_AUDIOSOCKET_STATUSES[reason]] += count
        return refused

    @property
    def internal_errors(self) -> int:
        """Internal errors of calls, of requests and of AudioSocket connections."""
        port = self.audiosocket
        return self.counters.internal_errors + (port.internal_errors.total() if port else 0)


def _count(
    name: str,
    unit: str,
    description: str,
    read: Callable[[IngestCounters], Value],
    attribute: str = "",
) -> Instrument[GatewayGauges]:
    return Instrument(
        f"turnbus.ingest.{name}",
        "counter",
        unit,
        description,
        lambda gauges: read(gauges.counters),
        attribute,
    )


def _known(counts: Counter[str]) -> Mapping[str, float] | None:
    return counts or None


INSTRUMENTS: tuple[Instrument[GatewayGauges], ...] = (
    Instrument(
        "turnbus.ingest.calls.open",
        "updowncounter",
        "{call}",
        "Calls that have not ended, by protocol",
        lambda gauges: _known(gauges.counters.calls_open),
        "turnbus.ingest.protocol",
    ),
    Instrument(
        "turnbus.ingest.calls.limit",
        "updowncounter",
        "{call}",
        "Maximum calls of this gateway",
        lambda gauges: gauges.max_calls,
    ),
    Instrument(
        "turnbus.ingest.ready",
        "updowncounter",
        "{gateway}",
        "1 if this gateway takes new calls, 0 if not",
        lambda gauges: int(gauges.is_ready()),
    ),
    Instrument(
        "turnbus.ingest.calls",
        "counter",
        "{call}",
        "Calls opened, by protocol",
        lambda gauges: _known(gauges.counters.calls_total),
        "turnbus.ingest.protocol",
    ),
    _count(
        "calls.ended",
        "{call}",
        "Calls ended, by reason",
        lambda counters: counters.calls_ended,
        "turnbus.ingest.reason",
    ),
    Instrument(
        "turnbus.ingest.refused",
        "counter",
        "{call}",
        "Calls refused, by HTTP status",
        lambda gauges: _known(gauges.refused),
        "turnbus.ingest.status",
    ),
    _count("frames", "{frame}", "Audio frames received", lambda counters: counters.frames),
    _count(
        "frames.repeated",
        "{frame}",
        "Numbered frames dropped: repeats, and those that came too late",
        lambda counters: counters.frames_repeated,
    ),
    _count(
        "frames.unused",
        "{frame}",
        "Audio frames of sessions that take no more audio",
        lambda counters: counters.frames_unused,
    ),
    _count(
        "holes",
        "{chunk}",
        "Chunks that are missing by the timestamps of the producer",
        lambda counters: counters.holes,
    ),
    _count(
        "entries",
        "{entry}",
        "Entries appended to audio streams",
        lambda counters: counters.entries,
    ),
    _count("audio.appended", "By", "Audio appended", lambda counters: counters.bytes),
    _count(
        "audio.dropped",
        "s",
        "Audio dropped because Redis was away for too long",
        lambda counters: counters.dropped_ms / 1000,
    ),
    _count(
        "controls.dropped",
        "{entry}",
        "Marks, forced ends and settings dropped for the same reason",
        lambda counters: counters.controls_dropped,
    ),
    Instrument(
        "turnbus.ingest.append.duration",
        "histogram",
        "s",
        "Time of an append to Redis, including its retries",
        lambda gauges: gauges.counters.append_latency,
    ),
    Instrument(
        "turnbus.ingest.redis.outage",
        "gauge",
        "s",
        "Time since Redis last answered; 0 while it is available",
        lambda gauges: gauges.outage_s(),
    ),
    Instrument(
        "turnbus.ingest.faults",
        "counter",
        "{fault}",
        "Internal errors that ended a call or a request; the log has the tracebacks",
        lambda gauges: gauges.internal_errors,
    ),
    Instrument(
        "turnbus.ingest.build.info",
        "gauge",
        "{gateway}",
        "1, with the version",
        lambda _: 1,
        constants={"version": build.describe()["version"]},
    ),
    Instrument(
        "process.cpu.time",
        "counter",
        "s",
        "CPU time of this gateway, user and system",
        lambda _: time.process_time(),
    ),
)
"""All metrics of a gateway."""


def prometheus_text(gauges: GatewayGauges) -> bytes:
    """Return the metrics in Prometheus's text format."""
    return render(read_all(INSTRUMENTS, gauges))
