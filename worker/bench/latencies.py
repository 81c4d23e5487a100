"""Delays of the worker alone, from its metrics.

The latency at the consumer includes the STT server and its socket; these are the parts before and
after.
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
    """The two delays of the worker."""

    sent: Latency = Latency()
    """Delay from the append of a chunk until it is sent to the provider."""
    appended: Latency = Latency()
    """Delay from the creation of an event, on a provider message, to its append."""


class HistogramReading:
    """Histograms of a worker's metrics at one time."""

    def __init__(self, text: str) -> None:
        """Parse metrics in the Prometheus text format."""
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
        """Return the delays counted between this reading and a later one."""
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
    """Read the metrics of the worker on this machine. Raises TurnbusError if that fails."""

    def get() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_TIMEOUT_S) as answer:
            text: str = answer.read().decode()
            return text

    try:
        return HistogramReading(await anyio.to_thread.run_sync(get))
    except (URLError, OSError) as error:
        raise TurnbusError(f"cannot read the worker's metrics: {error}") from error
