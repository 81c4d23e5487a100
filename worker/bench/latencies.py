"""Delays: how long the worker itself takes, by its own metrics.

What the consumer sees includes the STT server and its socket; these are the parts before and after.
"""

from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

import anyio.to_thread
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from worker.errors import TurnbusError
from worker.telemetry.counters import BOUNDS_S, Histogram

SENT: Final = "turnbus_chunk_lag_seconds"
APPENDED: Final = "turnbus_commit_duration_seconds"
_TIMEOUT_S: Final = 10.0


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds by quantile, each the upper bound of its histogram bucket."""

    p50: float = 0.0
    p99: float = 0.0


class Latencies(msgspec.Struct, frozen=True):
    """The worker's two parts."""

    sent: Latency = Latency()
    """From a chunk's append to its being sent to the service."""
    appended: Latency = Latency()
    """From an event's making, on a message of the service, to its append."""


class HistogramReading:
    """What a worker's metrics have counted so far."""

    def __init__(self, text: str) -> None:
        """Read metrics in Prometheus' text format."""
        self._counts = {SENT: Histogram(), APPENDED: Histogram()}
        for family in text_string_to_metric_families(text):
            if family.name not in self._counts:
                continue
            running = [
                int(sample.value) for sample in family.samples if sample.name.endswith("_bucket")
            ]
            histogram = self._counts[family.name]
            histogram.counts = [
                after - before for before, after in zip([0, *running], running, strict=False)
            ]

    def until(self, later: "HistogramReading") -> Latencies:
        """Return the delays of what was counted between this reading and a later one."""
        return Latencies(self._delay(SENT, later), self._delay(APPENDED, later))

    def _delay(self, name: str, later: "HistogramReading") -> Latency:
        window = Histogram(BOUNDS_S)
        window.counts = [
            after - before
            for before, after in zip(
                self._counts[name].counts, later._counts[name].counts, strict=True
            )
        ]
        return Latency(window.quantile(0.5) * 1000, window.quantile(0.99) * 1000)


async def read(port: int) -> HistogramReading:
    """Ask the worker on this machine for its metrics. Raises TurnbusError if it does not answer."""

    def get() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_TIMEOUT_S) as answer:
            text: str = answer.read().decode()
            return text

    try:
        return HistogramReading(await anyio.to_thread.run_sync(get))
    except (URLError, OSError) as error:
        raise TurnbusError(f"the worker does not tell its metrics: {error}") from error
