"""Spans: their parents, their attributes, and what they must never contain."""

import re
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import (
    error_attributes,
    gen_ai_attributes,
    messaging_attributes,
    server_attributes,
)
from opentelemetry.trace import SpanKind, StatusCode

from worker.errors import SttBusyError, SttTransientError
from worker.telemetry import traces
from worker.telemetry.traces import SessionTrace, Tracing

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
GIVEN = f"00-{TRACE_ID}-b7ad6b7169203331-01"
TRACING = Tracing("stt.example", 443, "cartesia")
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Collects the spans of a separate tracer provider: the global one can be set only once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def _ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return format(context.trace_id, "032x"), format(context.span_id, "016x")


def test_turn_is_a_span_of_the_producers_trace(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", GIVEN, "vendor=1")
    assert session.traceparent == GIVEN
    session.turn_started(4, 1_700_000_000.25)
    carried = session.traceparent
    for kind in ("turn.update", "turn.eager_end", "turn.update"):
        session.turn_updated(kind)
    session.turn_ended("watchdog", 1_700_000_002.5, "secret")
    assert session.traceparent == GIVEN

    (span,) = exported.get_finished_spans()
    # Seconds as a float have less precision than microseconds for current dates.
    assert span.start_time == pytest.approx(1_700_000_000_250_000_000, rel=0, abs=1_000)
    assert span.end_time == pytest.approx(1_700_000_002_500_000_000, rel=0, abs=1_000)
    assert span.kind is SpanKind.CONSUMER
    assert span.parent is not None
    assert format(span.parent.span_id, "016x") == "b7ad6b7169203331"
    assert span.parent.trace_state.get("vendor") == "1"
    assert carried is not None
    match = TRACEPARENT.fullmatch(carried)
    assert match is not None
    assert match.groups() == (*_ids(span), "01")
    assert _ids(span)[0] == TRACE_ID
    assert dict(span.attributes or {}) == {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "stt.audio",
        "messaging.message.conversation_id": "s1",
        "gen_ai.operation.name": "speech_to_text",
        "gen_ai.provider.name": "",
        "turnbus.turn": 4,
        "turnbus.turn.taken_over": False,
        "turnbus.turn.end_reason": "watchdog",
        "turnbus.turn.updates": 2,
        "turnbus.turn.eager_ends": 1,
        "turnbus.turn.resumes": 0,
    }
    assert [link.context for link in span.links] == [span.parent]


def test_each_turn_is_a_separate_span(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", GIVEN, None)
    carried = []
    for turn in range(3):
        session.turn_started(turn, turn * 10.0 + 1)
        carried.append(session.traceparent)
        session.turn_ended("model", turn * 10.0 + 5, "secret")
    spans = exported.get_finished_spans()
    assert len({_ids(span)[1] for span in spans}) == 3
    assert [f"00-{'-'.join(_ids(span))}-01" for span in spans] == carried
    assert {_ids(span)[0] for span in spans} == {TRACE_ID}


def test_turn_begun_by_another_worker_has_no_span(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", GIVEN, None)
    session.turn_ended("model", 5.0, "secret")
    assert exported.get_finished_spans() == ()


def test_failover_is_an_event_of_the_turn(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", None, None, TRACING)
    session.provider_changed("cartesia", "flux", "between turns")
    session.turn_started(1, 1_700_000_000.0)
    session.provider_changed("cartesia", "flux", "HTTP 503")
    session.turn_ended("model", 1_700_000_002.0, "")
    (span,) = exported.get_finished_spans()
    (event,) = span.events
    assert event.name == "provider changed"
    assert dict(event.attributes or {}) == {
        "turnbus.provider.from": "cartesia",
        "turnbus.provider.to": "flux",
        "turnbus.failover.reason": "HTTP 503",
    }


def test_turn_without_a_producers_context_begins_a_trace(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", None, None)
    carried = [session.traceparent]
    session.turn_started(0, 1.0)
    carried.append(session.traceparent)
    session.turn_ended("model", 2.0, "secret")
    carried.append(session.traceparent)
    (span,) = exported.get_finished_spans()
    assert span.parent is None
    before, during, after = carried
    assert (before, after) == (None, None)
    assert (during or "").startswith(f"00-{'-'.join(_ids(span))}-")


def test_unsampled_trace_is_still_propagated(
    exported: InMemorySpanExporter,
) -> None:
    unsampled = GIVEN[:-1] + "0"
    session = SessionTrace("s1", unsampled, None)
    session.turn_started(0, 1.0)
    assert session.traceparent is not None
    assert session.traceparent.startswith(f"00-{TRACE_ID}-")
    assert session.traceparent.endswith("-00")
    session.turn_ended("model", 2.0, "secret")
    assert exported.get_finished_spans() == ()


@pytest.mark.parametrize(
    "nonsense", ["", "00-0-0-00", "x" * 55, f"ff-{TRACE_ID}-b7ad6b7169203331-01", "00-" + "0" * 52]
)
def test_invalid_traceparent_is_ignored(nonsense: str, exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", nonsense, "also nonsense")
    session.turn_started(0, 1.0)
    assert TRACEPARENT.fullmatch(session.traceparent or "")
    session.turn_ended("model", 2.0, "secret")
    (span,) = exported.get_finished_spans()
    assert span.parent is None


def test_context_is_propagated_without_a_tracer_provider() -> None:
    session = SessionTrace("s1", GIVEN, None)
    session.turn_started(0, 1.0)
    assert session.traceparent == GIVEN
    session.turn_ended("model", 2.0, "secret")
    without = SessionTrace("s2", None, None)
    without.turn_started(0, 1.0)
    assert without.traceparent is None


def test_connect_span_contains_the_rejection(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", GIVEN, None, TRACING)
    with session.connecting("ink-2"):
        assert trace.get_current_span().is_recording()
    with pytest.raises(SttBusyError), session.connecting("ink-2"):
        raise SttBusyError("HTTP 429 Concurrency limit reached", status=429)
    with pytest.raises(ValueError, match="internal error"), session.connecting("ink-2"):
        raise ValueError("an internal error")
    good, refused, broken = exported.get_finished_spans()
    assert {span.kind for span in (good, refused, broken)} == {SpanKind.CLIENT}
    assert {_ids(span)[0] for span in (good, refused, broken)} == {TRACE_ID}
    common = {
        "gen_ai.operation.name": "speech_to_text",
        "gen_ai.provider.name": "cartesia",
        "gen_ai.conversation.id": "s1",
        "gen_ai.request.model": "ink-2",
        "server.address": "stt.example",
        "server.port": 443,
    }
    assert dict(good.attributes or {}) == common
    assert good.status.status_code is StatusCode.UNSET
    assert dict(refused.attributes or {}) == {
        **common,
        "error.type": "SttBusyError",
        "turnbus.stt.status": 429,
    }
    assert refused.status.status_code is StatusCode.ERROR
    assert refused.status.description == "HTTP 429 Concurrency limit reached"
    assert [list(span.events) for span in (good, refused, broken)] == [[], [], []]


def test_socket_events_inside_a_turn_belong_to_its_span(
    exported: InMemorySpanExporter,
) -> None:
    session = SessionTrace("s1", GIVEN, None, TRACING)
    session.turn_started(0, 1.0)
    with session.connecting("ink-2"):
        pass
    session.flush_started()
    session.turn_ended("close", 2.0, "secret")
    session.flush_ended(None)
    session.flush_ended(None)
    connect, turn, flush = exported.get_finished_spans()
    assert [span.name for span in (connect, turn, flush)] == [
        *("connect stt", "process stt.audio", "flush stt"),
    ]
    for child in (connect, flush):
        assert child.parent is not None
        assert format(child.parent.span_id, "016x") == _ids(turn)[1]
    assert flush.status.status_code is StatusCode.UNSET


def test_failed_flush_records_its_reason(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", GIVEN, None, TRACING)
    session.flush_started()
    session.flush_ended(SttTransientError("not flushed within 10 s", status=1006))
    (flush,) = exported.get_finished_spans()
    assert flush.status.description == "not flushed within 10 s"
    attributes = dict(flush.attributes or {})
    assert attributes["error.type"] == "SttTransientError"
    assert attributes["turnbus.stt.status"] == 1006


def test_claim_and_release_are_spans(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", GIVEN, None, TRACING)
    session.claimed("1700000000000-0", 2, "taken", 1_700_000_001.5)
    session.turn_started(3, 1_700_000_002.0, taken_over=True)
    session.released("1700000000000-0", 1_700_000_003.0)
    claim, turn, release = exported.get_finished_spans()
    assert (claim.name, release.name) == ("receive stt.sessions", "release stt.sessions")
    assert {span.kind for span in (claim, release)} == {SpanKind.CLIENT}
    assert {_ids(span)[0] for span in (claim, turn, release)} == {TRACE_ID}
    attributes = dict(claim.attributes or {})
    assert attributes["messaging.operation.type"] == "receive"
    assert attributes["messaging.consumer.group.name"] == "workers"
    assert attributes["messaging.message.id"] == "1700000000000-0"
    assert attributes["turnbus.claim.verdict"] == "taken"
    assert attributes["turnbus.claim.deliveries"] == 2
    assert attributes["turnbus.session.age"] == 1.5
    assert dict(turn.attributes or {})["turnbus.turn.end_reason"] == "handed_over"
    assert dict(turn.attributes or {})["turnbus.turn.taken_over"] is True
    assert dict(release.attributes or {})["turnbus.handover.inside_turn"] is True
    assert session.traceparent == GIVEN, "the next owner's turn is its own"


@pytest.mark.parametrize("transcripts", [False, True])
def test_transcripts_are_recorded_only_on_request(
    exported: InMemorySpanExporter, transcripts: bool
) -> None:
    session = SessionTrace("s1", GIVEN, None, Tracing(transcripts=transcripts))
    session.turn_started(0, 1.0)
    session.turn_ended("model", 2.0, "my card number")
    (span,) = exported.get_finished_spans()
    transcript = dict(span.attributes or {}).get("turnbus.turn.transcript")
    assert transcript == ("my card number" if transcripts else None)


def test_names_match_the_opentelemetry_conventions(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", GIVEN, None, TRACING)
    session.claimed("1-0", 1, "new", 2.0)
    session.turn_started(0, 1.0)
    session.flush_started()
    session.flush_ended(SttTransientError("cut", status=1006))
    session.released("1-0", 3.0)
    with session.connecting("ink-2") as span:
        span.set_attribute("gen_ai.response.id", "r")
    known = {
        value
        for module in (messaging_attributes, gen_ai_attributes, server_attributes, error_attributes)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    }
    used = {name for span in exported.get_finished_spans() for name in span.attributes or {}}
    own = {name for name in used if name.startswith("turnbus.")}
    assert used - own <= known
    assert len(used - own) > 10
