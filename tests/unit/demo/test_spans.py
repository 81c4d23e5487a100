"""The spans of the demo: read from the SDK's console exporter, and drawn."""

import json
from io import StringIO

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.trace import Span, StatusCode, set_span_in_context
from rich.console import Console

from worker.local.demo.display import JsonLines
from worker.local.demo.state import DemoState
from worker.local.demo.summary import summarize
from worker.local.demo.traces import read, traces, waterfall

SECOND = 10**9


class Process:
    """A traced process that prints its spans."""

    def __init__(self, name: str) -> None:
        self._printed = StringIO()
        provider = TracerProvider(resource=Resource({"service.instance.id": name}))
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=self._printed)))
        self._tracer = provider.get_tracer("turnbus")

    @property
    def printed(self) -> str:
        return self._printed.getvalue()

    def begin(self, name: str, at_s: int, parent: Span | None = None, **attributes: str) -> Span:
        named = {key.replace("_", "."): value for key, value in attributes.items()}
        context = set_span_in_context(parent) if parent else None
        return self._tracer.start_span(name, context, attributes=named, start_time=at_s * SECOND)


@pytest.fixture
def printed() -> list[str]:
    """A producer, a worker killed inside a turn, and the worker that takes over."""
    demo, one, two = Process("demo"), Process("worker-1"), Process("worker-2")
    session = {"gen_ai.conversation.id": "kennedy"}
    sent = demo.begin("send stt.sessions", 100)
    sent.set_attribute("messaging.message.conversation_id", "kennedy")
    sent.end(101 * SECOND)
    lost = one.begin("process stt.audio", 102, sent)
    one.begin("connect stt", 103, lost).end(104 * SECOND)
    turn = two.begin("process stt.audio", 106, sent)
    turn.set_attributes({"turnbus.turn": 0, "turnbus.turn.taken_over": True})
    refused = two.begin("connect stt", 107, turn)
    refused.set_attributes(session)
    refused.set_status(StatusCode.ERROR, "no more sockets")
    refused.end(108 * SECOND)
    turn.end(110 * SECOND)
    return [process.printed for process in (demo, one, two)]


def test_spans_are_read_from_console_exporter(printed: list[str]) -> None:
    (sent,) = read(printed[0])
    assert (sent.name, sent.process, sent.session) == ("send stt.sessions", "demo", "kennedy")
    assert (sent.kind, sent.parent_id, sent.seconds) == ("SpanKind.INTERNAL", None, 1.0)
    connect, turn = read(printed[2])
    assert connect.parent_id == turn.context["span_id"]
    assert (connect.status["status_code"], connect.session) == ("ERROR", "kennedy")
    assert read("") == []


def test_span_truncated_by_kill_is_skipped(printed: list[str]) -> None:
    whole = printed[2]
    for end in range(len(whole)):
        assert read(whole[:end]) == read(whole)[: whole[:end].count("\n}")]


def test_metrics_on_console_are_skipped(printed: list[str]) -> None:
    assert read('{"resource_metrics": []}\n' + printed[0]) == read(printed[0])


def test_spans_of_trace_are_arranged_by_parent(printed: list[str]) -> None:
    (rows,) = traces([span for text in (printed[2], printed[0]) for span in read(text)])
    assert [(depth, span.name, span.process) for span, depth in rows] == [
        (0, "send stt.sessions", "demo"),
        (1, "process stt.audio", "worker-2"),
        (2, "connect stt", "worker-2"),
    ]


def test_span_of_lost_parent_is_shown(printed: list[str]) -> None:
    spans = [span for text in printed for span in read(text)]
    (orphan,) = (span for span in spans if span.process == "worker-1")
    assert [row for rows in traces(spans) for row in rows].count((orphan, 0)) == 1


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_waterfall_is_drawn(printed: list[str], width: int) -> None:
    console = Console(width=width, file=StringIO(), color_system=None)
    spans = [span for text in printed for span in read(text)]
    console.print(waterfall(spans, 100.0, "worker-1"))
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert lines[1].startswith(f"kennedy  {spans[0].context['trace_id'][2:]}"[:width])
    if width >= 100:
        (turn,) = (line for line in lines if "process stt.audio" in line)
        assert turn.split()[:6] == ["process", "stt.audio", "worker-2", "6.0", "s", "4.00"]
        assert "turn 0, taken over" in turn
        assert any("no more sockets" in line for line in lines)
        assert lines[-1].startswith("worker-1 was killed")


def test_json_spans_come_before_summary(
    printed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    board = DemoState([], (), (), 100.0)
    JsonLines().finish(board, summarize(board, 110.0), read(printed[0]))
    span, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert summary["type"] == "demo.summary"
    assert span.pop("type") == "demo.span"
    whole = json.loads(printed[0])
    assert span.keys() == whole.keys()
    assert all(span[name] == whole[name] for name in span if not name.endswith("_time"))
