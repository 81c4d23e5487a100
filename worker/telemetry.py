"""Tracing: one span per turn and per connect, continued from the producer's context.

Spans go wherever the standard `OTEL_*` variables say. A turn's span is made when the turn ends,
with explicit times, so that a crash loses one at most; its identity is fixed when the turn starts,
so that the events of the turn already carry it. Transcripts, key terms and metadata are never
attributes. No span is made per chunk.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker.errors import SettingsError, SttError

SERVICE_NAME = "turnbus"

_tracer = trace.get_tracer(SERVICE_NAME)
_propagator = TraceContextTextMapPropagator()


def resource(worker_id: str) -> Resource:
    """Say who exports, as `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` add to it."""
    os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE_NAME)
    return Resource.create(
        {"service.version": version("turnbus"), "service.instance.id": worker_id}
    )


def configure(worker_id: str, env: Mapping[str, str] = os.environ) -> None:
    """Export spans as `OTEL_TRACES_EXPORTER` says: `otlp`, `console`, or `none` (the default).

    Raises `SettingsError` for an exporter that is unknown or not installed, or has nowhere to go.
    """
    spans_to = exporter(env)
    if spans_to is None or env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    provider = TracerProvider(resource=resource(worker_id))
    provider.add_span_processor(BatchSpanProcessor(spans_to))
    trace.set_tracer_provider(provider)


def exporter(env: Mapping[str, str] = os.environ) -> SpanExporter | None:
    """Return what exports spans, None if nothing shall; `SettingsError` as `configure` raises."""
    collector(env)
    return _exporter(_named(env))


def collector(env: Mapping[str, str] = os.environ) -> tuple[str, int] | None:
    """Return host and port that `otlp` sends spans to, None if it is not asked for.

    Raises `SettingsError` for an address or a protocol that cannot work.
    """
    if _named(env) != "otlp":
        return None
    faults = []
    protocol, named = _of_traces(env, "PROTOCOL", "http/protobuf")
    if protocol != "http/protobuf":
        faults.append(f"{named}: {protocol!r} is not spoken here; http/protobuf is")
    endpoint, named = _of_traces(env, "ENDPOINT", "http://localhost:4318")
    try:
        url = urlsplit(endpoint)
        port = url.port or {"http": 80, "https": 443}[url.scheme]
    except (ValueError, KeyError):
        url, port = urlsplit(""), 0
    if not url.hostname:
        faults.append(f"{named}: must be http://HOST:PORT or https://HOST:PORT")
    if faults:
        raise SettingsError(faults)
    return url.hostname or "", port


def _named(env: Mapping[str, str]) -> str:
    return env.get("OTEL_TRACES_EXPORTER", "").strip() or "none"


def _of_traces(env: Mapping[str, str], what: str, default: str) -> tuple[str, str]:
    """Return a value of the exporter's and the variable it comes from: that of traces first."""
    names = (f"OTEL_EXPORTER_OTLP_TRACES_{what}", f"OTEL_EXPORTER_OTLP_{what}")
    named = next((name for name in names if env.get(name, "").strip()), names[1])
    return env.get(named, "").strip() or default, named


def shut_down() -> None:
    """Send what is still buffered."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def _exporter(name: str) -> SpanExporter | None:
    match name:
        case "none":
            return None
        case "console":
            return ConsoleSpanExporter()
        case "otlp":
            try:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            except ImportError:
                raise SettingsError(
                    ["OTEL_TRACES_EXPORTER=otlp needs `pip install 'turnbus[otlp]'`"]
                ) from None
            otlp: SpanExporter = OTLPSpanExporter()
            return otlp
    raise SettingsError([f"OTEL_TRACES_EXPORTER: {name!r} is not one of otlp, console, none"])


class SessionTrace:
    """The spans of one session."""

    def __init__(self, session: str, traceparent: str | None, tracestate: str | None) -> None:
        carrier = {"traceparent": traceparent, "tracestate": tracestate}
        self._session = session
        self._given = traceparent
        self._parent: Context = _propagator.extract(
            {name: value for name, value in carrier.items() if value}
        )
        self._turn: Span | None = None

    def turn_started(self, turn: int, at: float) -> None:
        """Fix the identity of a turn's span; `at` in Unix seconds."""
        self._turn = _tracer.start_span(
            "process stt.audio",
            context=self._parent,
            kind=SpanKind.CONSUMER,
            start_time=int(at * 1e9),
            attributes={
                "messaging.system": "redis",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": "stt.audio",
                "messaging.message.conversation_id": self._session,
                "turnbus.turn": turn,
            },
        )

    def turn_ended(self, reason: str, at: float) -> None:
        """Finish the turn's span."""
        if self._turn is not None:
            self._turn.set_attribute("turnbus.turn.end_reason", reason)
            self._turn.end(int(at * 1e9))
            self._turn = None

    @property
    def traceparent(self) -> str | None:
        """What an event published now carries: the turn's span, else what the producer gave."""
        if self._turn is None or not self._turn.get_span_context().is_valid:
            return self._given
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(self._turn))
        return carrier.get("traceparent", self._given)

    @contextmanager
    def connecting(self, model: str) -> Iterator[None]:
        """Span one connect; a refusal is its error."""
        with _tracer.start_as_current_span(
            "connect stt",
            context=self._parent,
            kind=SpanKind.CLIENT,
            record_exception=False,
            set_status_on_exception=False,
            attributes={
                "messaging.message.conversation_id": self._session,
                "gen_ai.request.model": model,
            },
        ) as span:
            try:
                yield
            except SttError as error:
                span.set_status(StatusCode.ERROR, str(error))
                span.set_attribute("error.type", type(error).__name__)
                raise
