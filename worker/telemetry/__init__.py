"""Where telemetry goes, as OpenTelemetry's own `OTEL_*` variables say.

Spans are made in `worker.telemetry.traces`, metrics in `worker.telemetry.metrics`.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import IO, TYPE_CHECKING

from worker.errors import OutputFailedError, SettingsError
from worker.extras import how_to_install
from worker.telemetry.environment import Signal, collector, named

if TYPE_CHECKING:  # the SDK reads variables when it is imported: they have to be judged before
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

SERVICE_NAME = "turnbus"

LAST_EXPORT_S = 2.0
"""How long the last export of each signal may take, once all else is done."""


def resource(worker_id: str) -> "Resource":
    """Say who exports, as `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` add to it."""
    from opentelemetry.sdk.resources import Resource

    os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE_NAME)
    return Resource.create(
        {"service.version": version("turnbus"), "service.instance.id": worker_id}
    )


def configure(
    worker_id: str, env: Mapping[str, str] = os.environ, console: IO[str] | None = None
) -> None:
    """Export spans as `OTEL_TRACES_EXPORTER` says: `otlp`, `console`, or `none` (the default).

    Raises `SettingsError` for an exporter that is unknown or not installed, or has nowhere to go,
    and for any other value that the SDK cannot work with.
    """
    provider = tracer_provider(worker_id, env, console)
    if provider is not None:
        from opentelemetry import trace

        trace.set_tracer_provider(provider)


def tracer_provider(
    worker_id: str, env: Mapping[str, str] = os.environ, console: IO[str] | None = None
) -> "TracerProvider | None":
    """Return what makes spans and exports them, None if nothing shall.

    Raises `SettingsError` as `configure` does.
    """
    collector("traces", env)
    exporter = named("traces", env)
    if exporter == "none":
        return None
    with refusals("traces"):
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        spans_to = _otlp() if exporter == "otlp" else _console(console or sys.stdout)
        provider = TracerProvider(resource=resource(worker_id))
        provider.add_span_processor(BatchSpanProcessor(spans_to))
    return provider


@contextmanager
def refusals(signal: Signal) -> Iterator[None]:
    """Raise as `SettingsError` what the SDK raises or logs while it is set up for a signal.

    The SDK goes on with another value where it only logs. This is for what a future version, or a
    part that another package brings, makes of a variable that `worker.telemetry.environment` lets
    pass.
    """
    logged: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("opentelemetry")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        logged.insert(0, str(error))
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    if logged:
        raise SettingsError([f"{signal} cannot be exported as OTEL_* says: {logged[0]}"])


def shut_down() -> None:
    """Send what is still buffered, as far as the collector takes it at once."""
    if "opentelemetry.sdk.trace" not in sys.modules:
        return
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        # The SDK would wait for half a minute. Nobody waits for a daemon, not even the end.
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(LAST_EXPORT_S)
        if last.is_alive():
            log.warning("the last spans are lost: the collector takes too long")


def _otlp() -> "SpanExporter":
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        fault = f"OTEL_TRACES_EXPORTER: otlp is not installed; {how_to_install('otlp')}"
        raise SettingsError([fault]) from None
    otlp: SpanExporter = OTLPSpanExporter()
    return otlp


def _console(console: IO[str]) -> "SpanExporter":
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExportResult

    class Console(ConsoleSpanExporter):
        """Loses spans, not the worker, where standard output takes no more."""

        def export(self, spans: "Sequence[ReadableSpan]") -> SpanExportResult:
            try:
                return super().export(spans)
            except OutputFailedError as error:
                log.warning("spans are lost: %s", error)
                return SpanExportResult.FAILURE

    return Console(out=console)
