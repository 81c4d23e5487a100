"""Whole traces, producer to consumer: a worker process exports OTLP over real HTTP."""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import anyio
import pytest
from anyio.abc import Process
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from schemas.keys import Keys
from schemas.turns import Event, SessionEnded, TurnEnd, TurnUpdate, decode_turn_entry
from tests.support.acl import as_user
from tests.support.collector import Collector, attributes, collecting
from tests.support.harness import PCM16, Harness, kinds, words
from tests.support.polling import PATIENCE_S, eventually, no_longer
from tests.system.deploy.manifests import DEPLOY
from tests.system.deploy.waterfall import draw
from worker.bus.inspection import list_sessions
from worker.bus.registry import read_workers
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer

SOUND = synthesize_words([1, 2, 3], PCM16) + synthesize_silence(800, PCM16)
WORDS = range(12)
"""Words of a long turn, sent as fast as the worker sends."""
PROPAGATOR = TraceContextTextMapPropagator()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Collect what worker processes export."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        yield collector


@pytest.fixture
def tracer(collector: Collector) -> Iterator[trace.Tracer]:
    """Trace the producer and the consumer of a test, and export to the same collector."""
    provider = TracerProvider()
    exporter = OTLPSpanExporter(endpoint=f"{collector.endpoint}/v1/traces")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("test")
    provider.shutdown()


async def _announce(harness: Harness, tracer: trace.Tracer, session: str) -> None:
    """Announce a session as a tracing producer does."""
    with tracer.start_as_current_span("send stt.sessions", kind=trace.SpanKind.PRODUCER):
        carrier: dict[str, str] = {}
        PROPAGATOR.inject(carrier)
        await harness.announce(session, PCM16, **carrier)


async def _consume(harness: Harness, tracer: trace.Tracer) -> list[Event]:
    """Consume a session's turns as a tracing consumer does."""
    seen: list[Event] = []
    key, cursor = f"{harness.prefix}:{{0}}:turns", "0"
    with anyio.fail_after(PATIENCE_S):
        while not seen or not isinstance(seen[-1], SessionEnded):
            reply: Any = await harness.consumer.xread({key: cursor}, block=1_000)
            for read, fields in reply[0][1] if reply else ():
                cursor = read
                entry = decode_turn_entry(fields)
                seen.append(entry.event)
                if isinstance(entry.event, TurnEnd):
                    context = PROPAGATOR.extract({"traceparent": entry.traceparent or ""})
                    with tracer.start_as_current_span("process stt.turns", context=context):
                        pass
    return seen


def _tree(spans: list[Span]) -> dict[str, list[str]]:
    """Return span names by the name of their parent, in order of their start."""
    names = {span.span_id: span.name for span in spans}
    tree: dict[str, list[str]] = {}
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        tree.setdefault(names.get(span.parent_span_id, ""), []).append(span.name)
    return tree


@asynccontextmanager
async def _worker(harness: Harness, worker_id: str, log: Path) -> AsyncIterator[Process]:
    """Run a worker process, and check after its exit that it logged no internal error."""
    async with harness.worker_process(worker_id, log) as process:
        yield process
    assert process.returncode == 0
    assert "ERROR" not in await anyio.Path(log).read_text("utf-8")


async def test_trace_of_a_session_whose_socket_is_lost(
    harness: Harness, stt: TurnsServer, collector: Collector, tracer: trace.Tracer, tmp_path: Path
) -> None:
    stt.faults.set("cut@mid-turn,count=1")
    async with _worker(harness, "w1", tmp_path / "log"):
        # All audio is available at once: the worker inserts no filler that could split the turn.
        await harness.play("s", SOUND, pause_s=0, end=False)
        await _announce(harness, tracer, "s")
        await harness.until("s", TurnEnd)
        await harness.append("s", end="1")
        events = await _consume(harness, tracer)
    assert words(events) == [1, 2, 3]
    spans = collector.spans
    assert collector.resource["service.name"] == "turnbus"
    assert collector.resource["service.instance.id"] == "w1"
    assert len({span.trace_id for span in spans}) == 1
    tree = _tree(spans)
    assert tree[""] == ["send stt.sessions"]
    assert [name for name in tree["send stt.sessions"] if name != "flush stt"] == [
        *("receive stt.sessions", "connect stt", "process stt.audio"),
    ]
    assert [name for name in tree["process stt.audio"] if name != "flush stt"] == [
        *("connect stt", "process stt.turns"),
    ]
    assert sum(span.name == "flush stt" for span in spans) == 1

    by_name = {span.name: span for span in spans}
    root, turn = by_name["send stt.sessions"], by_name["process stt.audio"]
    assert [link.span_id for link in turn.links] == [root.span_id]
    assert turn.kind == Span.SPAN_KIND_CONSUMER
    recorded = attributes(turn.attributes)
    assert recorded["turnbus.turn.end_reason"] == "model"
    assert recorded["turnbus.turn.updates"] == kinds(events).count("turn.update")
    (lost,) = turn.events
    cut = attributes(lost.attributes)
    assert lost.name == "socket lost"
    assert (cut["error.type"], cut["turnbus.stt.status"]) == ("SttTransientError", 1006)
    first, again = (attributes(s.attributes) for s in spans if s.name == "connect stt")
    assert "turnbus.connect.after" not in first
    assert again["turnbus.connect.after"] == cut["turnbus.connect.after"] == "transient"
    assert again["turnbus.audio.replayed"] == cut["turnbus.audio.replayed"] > 0
    ended = next(event for event in events if isinstance(event, TurnEnd))
    assert turn.end_time_unix_nano == pytest.approx(ended.at * 1e9, abs=1e6)
    for span in spans:
        assert span.status.code == Status.STATUS_CODE_UNSET, span.name
        values = str(attributes(span.attributes).values())
        assert ended.transcript not in values, "transcripts are recorded on demand only"
        assert "sk_car" not in values


async def test_push_begins_the_trace(
    harness: Harness, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNBUS_REDIS_URL", as_user(harness.redis_url, "producer"))
    monkeypatch.setenv("TURNBUS_PREFIX", harness.prefix)
    push = [sys.executable, "-m", "worker", "push", "-", "--session", "s", "--speed", "2"]
    async with _worker(harness, "w1", tmp_path / "log"):
        await anyio.run_process(push, input=SOUND)
        await harness.until_ended("s")
    assert _tree(collector.spans)[""] == ["send stt.sessions"]
    (root,) = (span for span in collector.spans if not span.parent_span_id)
    assert root.kind == Span.SPAN_KIND_PRODUCER
    (claim,) = (span for span in collector.spans if span.name == "receive stt.sessions")
    assert [link.span_id for link in claim.links] == [root.span_id]
    message = "messaging.message.id"
    assert attributes(root.attributes)[message] == attributes(claim.attributes)[message]


@pytest.mark.slow
async def test_picture_of_a_trace(
    harness: Harness,
    stt: TurnsServer,
    collector: Collector,
    tracer: trace.Tracer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TURNBUS_DRAIN_S", "0")
    sounds = [
        synthesize_words(range(at, at + 5), PCM16) + synthesize_silence(900, PCM16)
        for at in (0, 5, 10)
    ]
    keys = Keys(harness.prefix)
    events: list[Event] = []

    async def consume() -> None:
        events.extend(await _consume(harness, tracer))

    async with (
        _worker(harness, "w1", tmp_path / "log1") as first,
        _worker(harness, "w2", tmp_path / "log2") as second,
    ):

        async def both_take_sessions() -> bool:
            known = await read_workers(harness.redis, keys)
            return [each.state for each in known.values()] == ["ready"] * 2

        await eventually(both_take_sessions, "both workers")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume)
            await _announce(harness, tracer, "s")
            await harness.play("s", sounds[0], end=False)
            stt.faults.set("cut@mid-turn,count=1")
            await harness.play("s", sounds[1], end=False)
            tasks.start_soon(harness.play, "s", sounds[2])
            await harness.until("s", TurnUpdate, 12)
            (status,) = await list_sessions(harness.redis, keys, 5_000)
            (first if status.owner == "w1" else second).terminate()
        await no_longer(lambda: harness.redis.xlen(keys.sessions), "the session")
    assert words(events) == list(range(15))
    picture = draw(
        "A call of three turns: a lost socket, then a worker that stops", collector.spans
    )
    root = ElementTree.fromstring(picture)
    assert sum("turn" in (each.text or "") for each in root.iter()) > 0
    place = DEPLOY / "observability" / "trace.svg"
    await anyio.Path(place).write_text(picture, "utf-8")


async def test_trace_of_a_session_released_inside_a_turn(
    harness: Harness,
    collector: Collector,
    tracer: trace.Tracer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TURNBUS_TRACE_TRANSCRIPTS", "true")
    monkeypatch.setenv("TURNBUS_DRAIN_S", "0")
    async with _worker(harness, "w1", tmp_path / "log1") as first:
        # All audio is available at once: no worker inserts filler that could end the turn early.
        await harness.play(
            "s",
            synthesize_words(WORDS, PCM16) + synthesize_silence(800, PCM16),
            pause_s=0,
            end=False,
        )
        await _announce(harness, tracer, "s")
        await harness.until("s", TurnUpdate)
        first.terminate()
        async with _worker(harness, "w2", tmp_path / "log2"):
            await harness.until("s", TurnEnd)
            await harness.append("s", end="1")
            events = await _consume(harness, tracer)
    assert words(events) == list(WORDS)
    assert len({span.trace_id for span in collector.spans}) == 1
    claims = [span for span in collector.spans if span.name == "receive stt.sessions"]
    verdicts = [attributes(span.attributes)["turnbus.claim.verdict"] for span in claims]
    assert verdicts == ["new", "taken"]
    (release,) = (span for span in collector.spans if span.name == "release stt.sessions")
    assert attributes(release.attributes)["turnbus.handover.inside_turn"] is True
    turns = [
        attributes(span.attributes) for span in collector.spans if span.name == "process stt.audio"
    ]
    assert [turn["turnbus.turn.end_reason"] for turn in turns] == ["handed_over", "model"]
    assert [turn["turnbus.turn.taken_over"] for turn in turns] == [False, True]
    (end,) = (event for event in events if isinstance(event, TurnEnd))
    assert turns[1]["turnbus.turn.transcript"] == end.transcript
