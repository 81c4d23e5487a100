"""Spans: one per turn, connect, flush, claim and handover, continued from the producer's context.

The worker creates a turn's span when the turn starts, so that its events carry the context. It
exports the span when the turn ends, so a crash loses at most one. Connects and flushes inside a
turn are children of the turn; all other spans are children of the producer's span. There is no span
per chunk: one costs 14 microseconds. Key terms and metadata are never attributes; transcripts are
only with `TURNBUS_TRACE_TRANSCRIPTS`. Names follow OpenTelemetry's conventions for messaging and
GenAI, in which the speech-to-text operation is still a proposal.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from schemas.keys import GROUP
from worker.core import stream_ids
from worker.errors import SttError

_tracer = trace.get_tracer("turnbus")
_propagator = TraceContextTextMapPropagator()


class Tracing(msgspec.Struct, frozen=True):
    """Common attributes of all spans of a worker."""

    server_address: str = ""
    """Host of the STT provider."""
    server_port: int = 0
    provider: str = ""
    transcripts: bool = False
    """Whether the spans of turns contain transcripts."""


class ProducerSpan:
    """A producer's span, in which the trace of a session starts."""

    def __init__(self, session: str) -> None:
        self._span = _tracer.start_span(
            "send stt.sessions",
            kind=SpanKind.PRODUCER,
            attributes=_messaging("send", "stt.sessions", session),
        )
        self.fields: dict[str, str] = {}
        """Fields for the session entry: `traceparent` and `tracestate`, if tracing is on."""
        _propagator.inject(self.fields, trace.set_span_in_context(self._span))

    def sent(self, entry_id: str) -> None:
        """End the span, with the id of the session entry."""
        self._span.set_attribute("messaging.message.id", entry_id)
        self._span.end()


class SessionTrace:
    """The spans of one session."""

    __slots__ = (
        "_events",
        "_flush",
        "_given",
        "_links",
        "_lost",
        "_parent",
        "_records_turn",
        "_session",
        "_tracing",
        "_turn",
        "traceparent",
    )

    def __init__(
        self,
        session: str,
        traceparent: str | None,
        tracestate: str | None,
        tracing: Tracing = Tracing(),  # noqa: B008 - frozen
    ) -> None:
        self._session = session
        self._given = traceparent
        self._tracing = tracing
        self._parent: Context = _propagator.extract(
            {"traceparent": traceparent or "", "tracestate": tracestate or ""}
        )
        announced = trace.get_current_span(self._parent).get_span_context()
        self._links = [Link(announced)] if announced.is_valid else []
        self._turn: Span | None = None
        self._records_turn = False  # without an exporter, the open turn's events are not counted
        self.traceparent = traceparent
        """Context for published events: the open turn's span, else the producer's."""
        self._events: Counter[str] = Counter()  # of the open turn
        self._flush: Span | None = None
        self._lost: dict[str, AttributeValue] = {}  # of the last socket

    def use_provider(self, provider: str, address: str, port: int) -> None:
        """Name the session's provider in the spans that follow."""
        self._tracing = msgspec.structs.replace(
            self._tracing, provider=provider, server_address=address, server_port=port
        )

    # -- a turn

    def turn_started(self, turn: int, at: float, *, taken_over: bool = False) -> None:
        """Start a turn's span; `at` is in Unix seconds.

        A turn that is `taken_over` began under another worker, whose span is lost.
        """
        self._events.clear()
        self._turn = _tracer.start_span(
            "process stt.audio",
            context=self._parent,
            kind=SpanKind.CONSUMER,
            links=self._links,
            start_time=_ns(at),
            attributes={
                **_messaging("process", "stt.audio", self._session),
                "gen_ai.operation.name": "speech_to_text",
                "gen_ai.provider.name": self._tracing.provider,
                "turnbus.turn": turn,
                "turnbus.turn.taken_over": taken_over,
            },
        )
        self._records_turn = self._turn.is_recording()
        if self._turn.get_span_context().is_valid:
            carrier: dict[str, str] = {}
            _propagator.inject(carrier, self._context)
            self.traceparent = carrier["traceparent"]

    def turn_updated(self, kind: str) -> None:
        """Count an event of the turn."""
        if self._records_turn:
            self._events[kind] += 1

    def turn_ended(self, reason: str, at: float, transcript: str) -> None:
        """End the turn's span."""
        if self._turn is None:
            return
        if self._turn.is_recording():
            attributes: dict[str, AttributeValue] = {
                "turnbus.turn.end_reason": reason,
                "turnbus.turn.updates": self._events["turn.update"],
                "turnbus.turn.eager_ends": self._events["turn.eager_end"],
                "turnbus.turn.resumes": self._events["turn.resume"],
            }
            if self._tracing.transcripts:
                attributes["turnbus.turn.transcript"] = transcript
            self._turn.set_attributes(attributes)
            self._turn.end(_ns(at))
        self._turn, self.traceparent = None, self._given

    # -- the socket

    @contextmanager
    def connecting(self, model: str) -> Iterator[Span]:
        """Trace one connect, including its error."""
        with _tracer.start_as_current_span(
            "connect stt",
            context=self._context,
            kind=SpanKind.CLIENT,
            record_exception=False,
            set_status_on_exception=False,
            attributes=self._provider() | {"gen_ai.request.model": model} | self._lost,
        ) as span:
            try:
                yield span
            except SttError as error:
                _fail(span, error)
                raise
        self._lost = {}

    def socket_lost(self, error: SttError, replayed_s: float) -> None:
        """Add an event to the open turn's span: its socket is lost, `replayed_s` will be replayed.

        The following connects have the same attributes until one succeeds.
        """
        self._lost = {
            "turnbus.connect.after": error.error_class,
            "turnbus.audio.replayed": replayed_s,
        }
        if self._turn is not None:
            cause: dict[str, AttributeValue] = {
                "error.type": type(error).__name__,
                "turnbus.stt.status": error.status,
            }
            self._turn.add_event("socket lost", self._lost | cause)

    def provider_changed(self, left: str, next_: str, reason: str) -> None:
        """Add an event to the open turn's span: the session continues at another provider."""
        if self._turn is not None:
            self._turn.add_event(
                "provider changed",
                {
                    "turnbus.provider.from": left,
                    "turnbus.provider.to": next_,
                    "turnbus.failover.reason": reason,
                },
            )

    def flush_started(self) -> None:
        """Start the span of a flush: from the worker's `close` to the provider's."""
        self._flush = _tracer.start_span(
            "flush stt", context=self._context, kind=SpanKind.CLIENT, attributes=self._provider()
        )

    def flush_ended(self, error: SttError | None) -> None:
        """End the span of a flush, if there is one, with its error."""
        if self._flush is None:
            return
        if error is not None:
            _fail(self._flush, error)
        self._flush.end()
        self._flush = None

    # -- ownership: these spans are created when the operation is done

    def claimed(self, entry_id: str, count: int, verdict: str, began: float) -> None:
        """Trace a claim; `began` is in Unix seconds, `count` is the entry's delivery count."""
        attributes: dict[str, AttributeValue] = {
            **_messaging("receive", "stt.sessions", self._session),
            "turnbus.claim.verdict": verdict,
            "turnbus.claim.deliveries": count,
            "turnbus.session.age": max(0.0, began - stream_ids.milliseconds(entry_id) / 1000),
        }
        self._settled("receive stt.sessions", entry_id, began, attributes)

    def released(self, entry_id: str, began: float) -> None:
        """Trace the release of a session; `began` is in Unix seconds.

        An open turn's span ends here: the next owner starts a new one.
        """
        attributes: dict[str, AttributeValue] = {
            **_messaging("release", "stt.sessions", self._session),
            "messaging.operation.type": "settle",
            "turnbus.handover.inside_turn": self._turn is not None,
        }
        self.turn_ended("handed_over", time.time(), "")
        self._settled("release stt.sessions", entry_id, began, attributes)

    def _settled(
        self, name: str, entry_id: str, began: float, attributes: dict[str, AttributeValue]
    ) -> None:
        attributes["messaging.message.id"] = entry_id
        attributes["messaging.consumer.group.name"] = GROUP
        _tracer.start_span(
            name,
            context=self._parent,
            kind=SpanKind.CLIENT,
            links=self._links,
            start_time=_ns(began),
            attributes=attributes,
        ).end()

    # -- attributes

    @property
    def _context(self) -> Context:
        """Context of the open turn, else of the producer."""
        if self._turn is None:
            return self._parent
        return trace.set_span_in_context(self._turn, self._parent)

    def _provider(self) -> dict[str, AttributeValue]:
        return {
            "gen_ai.operation.name": "speech_to_text",
            "gen_ai.provider.name": self._tracing.provider,
            "gen_ai.conversation.id": self._session,
            "server.address": self._tracing.server_address,
            "server.port": self._tracing.server_port,
        }


def _messaging(operation: str, destination: str, session: str) -> dict[str, AttributeValue]:
    return {
        "messaging.system": "redis",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": destination,
        "messaging.message.conversation_id": session,
    }


def _fail(span: Span, error: SttError) -> None:
    span.set_status(StatusCode.ERROR, str(error))
    span.set_attribute("error.type", type(error).__name__)
    if error.status:
        span.set_attribute("turnbus.stt.status", error.status)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
