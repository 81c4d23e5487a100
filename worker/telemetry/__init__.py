"""Where telemetry goes, as OpenTelemetry's own `OTEL_*` variables say.

Spans are made in `worker.telemetry.spans`, metrics in `worker.telemetry.metrics`.
"""

import logging
import os
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import version
from typing import IO, Literal, TypeAlias
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

from worker.errors import SettingsError
from worker.extras import how_to_install

log = logging.getLogger(__name__)

SERVICE_NAME = "turnbus"

LAST_EXPORT_S = 2.0
"""How long the last export of each signal may take, once all else is done."""

Signal: TypeAlias = Literal["traces", "metrics"]


def resource(worker_id: str) -> Resource:
    """Say who exports, as `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` add to it."""
    os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE_NAME)
    return Resource.create(
        {"service.version": version("turnbus"), "service.instance.id": worker_id}
    )


def configure(
    worker_id: str, env: Mapping[str, str] = os.environ, console: IO[str] = sys.stdout
) -> None:
    """Export spans as `OTEL_TRACES_EXPORTER` says: `otlp`, `console`, or `none` (the default).

    Raises `SettingsError` for an exporter that is unknown or not installed, or has nowhere to go.
    """
    spans_to = exporter(env, console)
    if spans_to is None:
        return
    provider = TracerProvider(resource=resource(worker_id))
    provider.add_span_processor(BatchSpanProcessor(spans_to))
    trace.set_tracer_provider(provider)


def exporter(
    env: Mapping[str, str] = os.environ, console: IO[str] = sys.stdout
) -> SpanExporter | None:
    """Return what exports spans, None if nothing shall; `SettingsError` as `configure` raises."""
    collector("traces", env)
    return _exporter(named("traces", env), console)


def named(signal: Signal, env: Mapping[str, str]) -> str:
    """Return the name of what exports a signal; `none` if nothing shall."""
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return "none"
    return env.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip() or "none"


def collector(signal: Signal, env: Mapping[str, str] = os.environ) -> tuple[str, int] | None:
    """Return host and port that `otlp` sends a signal to, None if it is not asked for.

    Raises `SettingsError` for an address or a protocol that cannot work.
    """
    if named(signal, env) != "otlp":
        return None
    faults = []
    protocol, variable = _of_otlp(signal, env, "PROTOCOL", "http/protobuf")
    if protocol != "http/protobuf":
        faults.append(f"{variable}: {protocol!r} is not spoken here; http/protobuf is")
    endpoint, variable = _of_otlp(signal, env, "ENDPOINT", "http://localhost:4318")
    try:
        url = urlsplit(endpoint)
        port = url.port or {"http": 80, "https": 443}[url.scheme]
    except (ValueError, KeyError):
        url, port = urlsplit(""), 0
    if not url.hostname:
        faults.append(f"{variable}: must be http://HOST:PORT or https://HOST:PORT")
    if faults:
        raise SettingsError(faults)
    return url.hostname or "", port


def _of_otlp(signal: Signal, env: Mapping[str, str], what: str, default: str) -> tuple[str, str]:
    """Return a value of the exporter's and the variable it comes from: the signal's own first."""
    names = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{what}", f"OTEL_EXPORTER_OTLP_{what}")
    variable = next((name for name in names if env.get(name, "").strip()), names[1])
    return env.get(variable, "").strip() or default, variable


def shut_down() -> None:
    """Send what is still buffered, as far as the collector takes it at once."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        # The SDK would wait for half a minute. Nobody waits for a daemon, not even the end.
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(LAST_EXPORT_S)
        if last.is_alive():
            log.warning("the last spans are lost: the collector takes too long")


def _exporter(name: str, console: IO[str]) -> SpanExporter | None:
    match name:
        case "none":
            return None
        case "console":
            return ConsoleSpanExporter(out=console)
        case "otlp":
            try:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            except ImportError:
                fault = f"OTEL_TRACES_EXPORTER: otlp is not installed; {how_to_install('otlp')}"
                raise SettingsError([fault]) from None
            otlp: SpanExporter = OTLPSpanExporter()
            return otlp
    raise SettingsError([f"OTEL_TRACES_EXPORTER: {name!r} is not one of otlp, console, none"])
