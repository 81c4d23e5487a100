"""Metrics as OTLP: real protobuf over real HTTP, and the cases in which none is sent."""

import socket
from pathlib import Path

import anyio
import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric

from tests.support.collector import Collector, attributes, collecting
from tests.support.harness import PCM16, Harness
from tests.support.polling import PATIENCE_S
from worker import build
from worker.errors import SettingsError
from worker.local.emulator.engines.script import synthesize_words
from worker.telemetry.metrics import INSTRUMENTS, WorkerGauges
from worker.telemetry.otlp import metric_push

CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


def _points(metric: Metric) -> dict[str, float]:
    """Return the values of a metric by the value of its attribute."""
    data = metric.sum if metric.WhichOneof("data") == "sum" else metric.gauge
    return {
        "".join(map(str, attributes(point.attributes).values())): (
            point.as_double if point.WhichOneof("value") == "as_double" else point.as_int
        )
        for point in data.data_points
    }


async def _push(harness: Harness, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a session and export its metrics."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "calls")
    push = metric_push("w1", {"OTEL_METRICS_EXPORTER": "otlp"})
    assert push is not None
    async with harness.worker() as worker:
        meter = WorkerGauges(worker)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push.run, meter)
            tasks.start_soon(meter.follow_demand)
            await harness.announce("s")
            await harness.play("s", synthesize_words([1], PCM16), pause_s=0.02)
            await harness.until_ended("s")
            tasks.cancel_scope.cancel()  # the next export is a minute away, but one is made at exit


async def test_every_metric_is_exported(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        await _push(harness, collector, monkeypatch)
    assert collector.resource["service.name"] == "calls"
    assert collector.resource["service.instance.id"] == "w1"
    assert collector.resource["deployment.environment.name"] == "test"
    arrived = {metric.name: metric for metric in collector.metrics}
    assert arrived.keys() == {instrument.name for instrument in INSTRUMENTS}
    for instrument in INSTRUMENTS:
        metric = arrived[instrument.name]
        assert (metric.unit, metric.description) == (instrument.unit, instrument.description)
        match instrument.kind:
            case "histogram":
                (point,) = metric.histogram.data_points
                assert metric.histogram.aggregation_temporality == CUMULATIVE
                assert sum(point.bucket_counts) == point.count
                assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
                assert not point.HasField("min")
            case "gauge":
                assert metric.WhichOneof("data") == "gauge"
            case kind:
                assert metric.sum.is_monotonic == (kind == "counter")
                assert metric.sum.aggregation_temporality == CUMULATIVE
    assert _points(arrived["turnbus.connects"])["ok"] == 1
    assert _points(arrived["turnbus.events"])["turn.end"] == 1
    assert _points(arrived["turnbus.sessions.limit"]) == {"": 500}
    (info,) = arrived["turnbus.build.info"].gauge.data_points
    assert {each.key: each.value.string_value for each in info.attributes} == build.describe()
    assert arrived["turnbus.connect.duration"].histogram.data_points[0].count == 1


async def test_silent_collector_delays_no_exit(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRACES", "METRICS"):
        monkeypatch.setenv(f"OTEL_{name}_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "120")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and sends nothing
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        async with harness.worker_process("w1", tmp_path / "log") as process:
            await harness.announce("s")
            await harness.play("s", synthesize_words([1], PCM16), pause_s=0)
            await harness.until_ended("s")
            process.terminate()
            with anyio.fail_after(PATIENCE_S):
                assert await process.wait() == 0
    assert "the last spans are lost" in await anyio.Path(tmp_path / "log").read_text("utf-8")


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_METRICS_EXPORTER": " none "},
        {"OTEL_METRICS_EXPORTER": "prometheus"},
        {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_nothing_is_exported_by_default(env: dict[str, str]) -> None:
    assert metric_push("w1", env) is None


@pytest.mark.parametrize(
    ("env", "fault"),
    [
        ({"OTEL_METRICS_EXPORTER": "statsd"}, "'statsd' is not one of otlp, console"),
        (
            {"OTEL_METRICS_EXPORTER": "console", "OTEL_METRIC_EXPORT_INTERVAL": "1 min"},
            "OTEL_METRIC_EXPORT_INTERVAL: must be a number from 1 to 2147483647, not '1 min'",
        ),
        (
            {"OTEL_METRICS_EXPORTER": "console", "OTEL_METRIC_EXPORT_INTERVAL": "0"},
            "OTEL_METRIC_EXPORT_INTERVAL: must be a number from 1 to 2147483647, not '0'",
        ),
    ],
)
def test_unusable_otlp_settings_are_settings_errors(env: dict[str, str], fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        metric_push("w1", env)
