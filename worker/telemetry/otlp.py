"""Push of metrics over OTLP, configured by OpenTelemetry's own `OTEL_*` variables.

Samples are converted to the SDK's data points, and its exporter sends them. The SDK's instruments
cannot replace the conversion: it has no observable histogram, and `record` of its histogram takes
3 microseconds per chunk, 30 times as long as `Histogram.observe`. Sums are cumulative since the
start of the process.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ConsoleMetricExporter,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from worker.errors import OutputFailedError
from worker.telemetry import LAST_EXPORT_S, SERVICE_NAME, resource
from worker.telemetry.counters import Histogram
from worker.telemetry.environment import (
    check_variables,
    exporter_name,
    not_installed,
    sdk_errors_as_settings_errors,
)
from worker.telemetry.metrics import Sample, WorkerGauges, samples

log = logging.getLogger(__name__)

INTERVAL_MS = 60_000.0
"""Default interval between exports; `OTEL_METRIC_EXPORT_INTERVAL` overrides it."""


class MetricPush:
    """Exports the metrics of a worker periodically."""

    def __init__(self, exporter: MetricExporter, interval_s: float, source: Resource) -> None:
        self._exporter = exporter
        self._interval_s = interval_s
        self._resource = source
        self._started_ns = time.time_ns()

    async def run(self, gauges: WorkerGauges) -> None:
        """Export until cancelled, and a last time then."""
        try:
            while True:
                await anyio.sleep(self._interval_s)
                await self._export(gauges)
        finally:
            with anyio.move_on_after(LAST_EXPORT_S, shield=True):
                await self._export(gauges)

    async def _export(self, gauges: WorkerGauges) -> None:
        now_ns = time.time_ns()
        metrics = [_metric(sample, self._started_ns, now_ns) for sample in samples(gauges)]
        scope = ScopeMetrics(InstrumentationScope(SERVICE_NAME), metrics, schema_url="")
        data = MetricsData([ResourceMetrics(self._resource, [scope], schema_url="")])
        sent, loop = anyio.Event(), current_token()

        def export() -> None:
            try:
                self._exporter.export(data)  # logs its errors, and retries for some seconds
            except OutputFailedError as error:  # from the console exporter
                log.warning("metrics are lost: %s", error)
            finally:
                with suppress(RuntimeError):  # the event loop has ended
                    anyio.from_thread.run_sync(sent.set, token=loop)

        # A daemon thread: at exit the process would wait for a thread of anyio.
        threading.Thread(target=export, daemon=True).start()
        await sent.wait()


def metric_push(worker_id: str, env: Mapping[str, str] = os.environ) -> MetricPush | None:
    """Return the push selected by `OTEL_METRICS_EXPORTER`; None for `none` (the default).

    `prometheus` also returns None: `/metrics` is always served. Raises `SettingsError` for an
    exporter that is unknown or not installed, and for any other value that the SDK cannot use.
    """
    check_variables("metrics", env)
    with sdk_errors_as_settings_errors("metrics"):
        match exporter_name("metrics", env):
            case "otlp":
                exporter = _otlp()
            case "console":
                exporter = ConsoleMetricExporter(out=sys.stdout)
            case _:  # `none`, or `prometheus`
                return None
        interval_ms = float(env.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip() or INTERVAL_MS)
        return MetricPush(exporter, interval_ms / 1000, resource(worker_id))


def _otlp() -> MetricExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    except ImportError as error:
        raise not_installed("metrics", error) from None
    exporter: MetricExporter = OTLPMetricExporter()
    return exporter


def _metric(sample: Sample, started_ns: int, now_ns: int) -> Metric:
    """Convert a sample to the data model of the SDK's exporters."""
    instrument, value = sample
    data: Sum | Gauge | HistogramData
    cumulative = AggregationTemporality.CUMULATIVE
    if isinstance(value, Histogram):
        point = HistogramDataPoint(
            attributes={},
            start_time_unix_nano=started_ns,
            time_unix_nano=now_ns,
            count=value.count,
            sum=value.sum_s,
            bucket_counts=tuple(value.counts),
            explicit_bounds=value.bounds,
            min=None,  # type: ignore[arg-type]  # optional in OTLP, and not kept
            max=None,  # type: ignore[arg-type]
        )
        data = HistogramData([point], cumulative)
    else:
        by_attribute = value if isinstance(value, Mapping) else {"": value}
        points = [
            NumberDataPoint(
                {**instrument.constants, instrument.attribute: attribute}
                if instrument.attribute
                else dict(instrument.constants),
                started_ns,
                now_ns,
                number,
            )
            for attribute, number in by_attribute.items()
        ]
        monotonic = instrument.kind == "counter"
        data = Gauge(points) if instrument.kind == "gauge" else Sum(points, cumulative, monotonic)
    return Metric(instrument.name, instrument.description, instrument.unit, data)
