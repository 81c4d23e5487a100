"""Export of telemetry, configured by OpenTelemetry's own `OTEL_*` variables.

`worker.telemetry.traces` creates spans, and `worker.telemetry.metrics` reads metrics.
"""

import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import IO, TYPE_CHECKING

from worker.errors import OutputFailedError
from worker.telemetry.environment import (
    check_variables,
    exporter_name,
    not_installed,
    sdk_errors_as_settings_errors,
)

if TYPE_CHECKING:  # the SDK reads variables at import: they have to be validated before
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

SERVICE_NAME = "turnbus"

LAST_EXPORT_S = 2.0
"""Timeout for the last export of each signal, at exit."""


def resource(worker_id: str) -> "Resource":
    """Return the resource, with `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` merged in."""
    from opentelemetry.sdk.resources import Resource

    os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE_NAME)
    return Resource.create(
        {"service.version": version("turnbus"), "service.instance.id": worker_id}
    )


def configure(
    worker_id: str, env: Mapping[str, str] = os.environ, console: IO[str] | None = None
) -> None:
    """Set up the export of spans by `OTEL_TRACES_EXPORTER`: `otlp`, `console` or `none` (default).

    Raises `SettingsError` for an exporter that is unknown or not installed, and for any other value
    that the SDK cannot use.
    """
    provider = tracer_provider(worker_id, env, console)
    if provider is not None:
        from opentelemetry import trace

        trace.set_tracer_provider(provider)


def tracer_provider(
    worker_id: str, env: Mapping[str, str] = os.environ, console: IO[str] | None = None
) -> "TracerProvider | None":
    """Return the provider that creates and exports spans; None if tracing is off.

    Raises `SettingsError` as `configure` does.
    """
    check_variables("traces", env)
    exporter = exporter_name("traces", env)
    if exporter == "none":
        return None
    with sdk_errors_as_settings_errors("traces"):
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        spans_to = _otlp() if exporter == "otlp" else _console(console or sys.stdout)
        provider = TracerProvider(resource=resource(worker_id))
        provider.add_span_processor(BatchSpanProcessor(spans_to))
    return provider


def shut_down() -> None:
    """Export the buffered spans, for at most `LAST_EXPORT_S`."""
    if "opentelemetry.sdk.trace" not in sys.modules:
        return
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        # The SDK would wait for half a minute. The interpreter does not wait for a daemon thread.
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(LAST_EXPORT_S)
        if last.is_alive():
            log.warning("the last spans are lost (the collector takes too long)")


def _otlp() -> "SpanExporter":
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise not_installed("traces", error) from None
    exporter: SpanExporter = OTLPSpanExporter()
    return exporter


def _console(console: IO[str]) -> "SpanExporter":
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExportResult

    class Console(ConsoleSpanExporter):
        """Drops spans, instead of ending the worker, if standard output fails."""

        def export(self, spans: "Sequence[ReadableSpan]") -> SpanExportResult:
            try:
                return super().export(spans)
            except OutputFailedError as error:
                log.warning("spans are lost: %s", error)
                return SpanExportResult.FAILURE

    return Console(out=console)
