"""Spans: whose they are, what they say, and what they must never say."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from worker import telemetry
from worker.errors import SettingsError, SttBusy
from worker.telemetry import SessionTrace

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
GIVEN = f"00-{TRACE_ID}-b7ad6b7169203331-01"
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Spans of a provider of its own: the process's can be set once only."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def _ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return format(context.trace_id, "032x"), format(context.span_id, "016x")


def test_a_turn_is_a_span_of_the_producers_trace(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", GIVEN, "vendor=1")
    assert session.traceparent == GIVEN
    session.turn_started(4, 1_700_000_000.25)
    carried = session.traceparent
    session.turn_ended("watchdog", 1_700_000_002.5)
    assert session.traceparent == GIVEN

    (span,) = exported.get_finished_spans()
    # Seconds as a float know less than microseconds of today.
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
        "turnbus.turn": 4,
        "turnbus.turn.end_reason": "watchdog",
    }


def test_each_turn_is_a_span_of_its_own(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", GIVEN, None)
    carried = []
    for turn in range(3):
        session.turn_started(turn, turn * 10.0 + 1)
        carried.append(session.traceparent)
        session.turn_ended("model", turn * 10.0 + 5)
    spans = exported.get_finished_spans()
    assert len({_ids(span)[1] for span in spans}) == 3
    assert [f"00-{'-'.join(_ids(span))}-01" for span in spans] == carried
    assert {_ids(span)[0] for span in spans} == {TRACE_ID}


def test_a_turn_that_another_worker_began_has_no_span(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", GIVEN, None)
    session.turn_ended("model", 5.0)
    assert exported.get_finished_spans() == ()


def test_without_a_producers_context_a_turn_is_a_trace(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", None, None)
    carried = [session.traceparent]
    session.turn_started(0, 1.0)
    carried.append(session.traceparent)
    session.turn_ended("model", 2.0)
    carried.append(session.traceparent)
    (span,) = exported.get_finished_spans()
    assert span.parent is None
    before, during, after = carried
    assert (before, after) == (None, None)
    assert (during or "").startswith(f"00-{'-'.join(_ids(span))}-")


def test_a_trace_that_is_not_sampled_is_carried_on_all_the_same(
    exported: InMemorySpanExporter,
) -> None:
    unsampled = GIVEN[:-1] + "0"
    session = SessionTrace("s1", unsampled, None)
    session.turn_started(0, 1.0)
    assert session.traceparent is not None
    assert session.traceparent.startswith(f"00-{TRACE_ID}-")
    assert session.traceparent.endswith("-00")
    session.turn_ended("model", 2.0)
    assert exported.get_finished_spans() == ()


@pytest.mark.parametrize(
    "nonsense", ["", "00-0-0-00", "x" * 55, f"ff-{TRACE_ID}-b7ad6b7169203331-01", "00-" + "0" * 52]
)
def test_a_traceparent_that_is_none_is_no_parent(
    nonsense: str, exported: InMemorySpanExporter
) -> None:
    session = SessionTrace("s1", nonsense, "also nonsense")
    session.turn_started(0, 1.0)
    assert TRACEPARENT.fullmatch(session.traceparent or "")
    session.turn_ended("model", 2.0)
    (span,) = exported.get_finished_spans()
    assert span.parent is None


def test_without_a_provider_the_producers_context_is_passed_on() -> None:
    session = SessionTrace("s1", GIVEN, None)
    session.turn_started(0, 1.0)
    assert session.traceparent == GIVEN
    session.turn_ended("model", 2.0)
    without = SessionTrace("s2", None, None)
    without.turn_started(0, 1.0)
    assert without.traceparent is None


def test_a_connect_is_a_span_and_a_refusal_its_error(exported: InMemorySpanExporter) -> None:
    session = SessionTrace("s1", GIVEN, None)
    with session.connecting("ink-2"):
        assert trace.get_current_span().is_recording()
    with pytest.raises(SttBusy), session.connecting("ink-2"):
        raise SttBusy("HTTP 429 Concurrency limit reached", status=429)
    with pytest.raises(ValueError, match="a defect"), session.connecting("ink-2"):
        raise ValueError("a defect of ours")
    good, refused, broken = exported.get_finished_spans()
    assert {span.kind for span in (good, refused, broken)} == {SpanKind.CLIENT}
    assert {_ids(span)[0] for span in (good, refused, broken)} == {TRACE_ID}
    common = {"messaging.message.conversation_id": "s1", "gen_ai.request.model": "ink-2"}
    assert dict(good.attributes or {}) == common
    assert good.status.status_code is StatusCode.UNSET
    assert dict(refused.attributes or {}) == {**common, "error.type": "SttBusy"}
    assert refused.status.status_code is StatusCode.ERROR
    assert refused.status.description == "HTTP 429 Concurrency limit reached"
    assert [list(span.events) for span in (good, refused, broken)] == [[], [], []]


# -- where spans go


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_TRACES_EXPORTER": ""},
        {"OTEL_TRACES_EXPORTER": " none "},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "TRUE"},
    ],
)
def test_nothing_is_exported_unless_asked_for(env: dict[str, str]) -> None:
    telemetry.configure("w1", env)
    assert not isinstance(trace.get_tracer_provider(), TracerProvider)
    telemetry.shut_down()


def test_an_exporter_nobody_knows_is_a_fault() -> None:
    with pytest.raises(SettingsError, match="'jaeger' is not one of otlp, console, none"):
        telemetry.configure("w1", {"OTEL_TRACES_EXPORTER": "jaeger"})


PROGRAM = """
from worker import telemetry
telemetry.configure("w1")
session = telemetry.SessionTrace("s1", None, None)
session.turn_started(0, 1.0)
session.turn_ended("model", 2.0)
telemetry.shut_down()
"""


def test_the_console_gets_what_was_buffered() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"OTEL_TRACES_EXPORTER": "console"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert '"turnbus.turn.end_reason": "model"' in run.stdout
    assert '"service.name": "turnbus"' in run.stdout
    assert run.stderr == ""


def test_the_service_may_be_named_otherwise() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "calls"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert '"service.name": "calls"' in run.stdout
