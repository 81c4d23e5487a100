"""Metrics as Prometheus text, named by OpenTelemetry's mapping to Prometheus.

Dots become underscores, the unit is a suffix, and a counter ends in `_total`: `turnbus.chunk.lag`
in seconds is `turnbus_chunk_lag_seconds`.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Never

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from worker.telemetry.counters import Histogram
from worker.telemetry.metrics import Instrument, Sample

_UNITS = {"s": "_seconds", "By": "_bytes"}


class _Once(Collector):
    """A collector of given samples."""

    def __init__(self, readings: Iterable[Sample]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        return map(_family, self._readings)


def render(readings: Iterable[Sample]) -> bytes:
    """Return samples in the text format 0.0.4."""
    return generate_latest(_Once(readings))


def prometheus_name(instrument: Instrument[Never]) -> str:
    """Return a metric's Prometheus name; histograms add `_bucket`, `_sum` and `_count`."""
    name = instrument.name.replace(".", "_") + _UNITS.get(instrument.unit, "")
    return f"{name}_total" if instrument.kind == "counter" else name


def labels(instrument: Instrument[Never]) -> list[str]:
    """Return the labels of a metric; the one that distinguishes its values is the last."""
    names = [*instrument.constants, instrument.attribute]
    return [name.replace(".", "_") for name in names if name]


def _family(reading: Sample) -> Metric:
    instrument, value = reading.instrument, reading.value
    name, about = prometheus_name(instrument), instrument.description
    if isinstance(value, Histogram):
        bounds = [*map(floatToGoString, value.bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(value.counts)), strict=True))
        return HistogramMetricFamily(name, about, buckets=buckets, sum_value=value.sum_s)
    kind = CounterMetricFamily if instrument.kind == "counter" else GaugeMetricFamily
    family = kind(name, about, labels=labels(instrument))
    constants = list(instrument.constants.values())
    if not isinstance(value, Mapping):
        family.add_metric(constants, value)
    else:
        for attribute, number in value.items():
            family.add_metric([*constants, attribute], number)
    return family
