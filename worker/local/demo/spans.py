"""Spans of the demo, parsed from the output of OpenTelemetry's console exporter. No I/O."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec


class Context(msgspec.Struct, frozen=True):
    """Ids of the span, in hexadecimal."""

    trace_id: str
    span_id: str
    trace_state: str


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """Result of the span."""

    status_code: str
    description: str = ""


class Resource(msgspec.Struct, frozen=True):
    """Process that exported the span."""

    attributes: dict[str, Any]
    schema_url: str


class Span(msgspec.Struct, frozen=True, tag="demo.span"):
    """One span, with all fields that the exporter prints."""

    name: str
    context: Context
    kind: str
    parent_id: str | None
    start_time: datetime
    end_time: datetime
    status: Status
    attributes: dict[str, Any]
    events: list[Any]
    links: list[Any]
    resource: Resource

    @property
    def session(self) -> str:
        """Session of the span."""
        named = ("messaging.message.conversation_id", "gen_ai.conversation.id")
        return next((self.attributes[name] for name in named if name in self.attributes), "")

    @property
    def process(self) -> str:
        """Id of the worker that created the span, or `demo`, which is the producer."""
        made_by: str = self.resource.attributes["service.instance.id"]
        return made_by

    @property
    def seconds(self) -> float:
        """Duration of the span."""
        return (self.end_time - self.start_time).total_seconds()


def read(printed: str) -> list[Span]:
    """Parse the output of an exporter; ignore a span that a kill truncated."""
    decoder = json.JSONDecoder()
    spans = []
    at = 0
    while (at := printed.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(printed, at)
        except json.JSONDecodeError:
            break
        if "context" in value:  # otherwise metrics, which the user may also export to the console
            spans.append(msgspec.convert(value, Span))
    return spans


def traces(spans: Sequence[Span]) -> list[list[tuple[Span, int]]]:
    """Group spans by trace and order each trace as a tree: every span with its depth.

    A span whose parent was never exported has depth 0.
    """
    known = {span.context.span_id for span in spans}
    by_trace: dict[str, dict[str | None, list[Span]]] = {}
    for span in sorted(spans, key=lambda span: span.start_time):
        children = by_trace.setdefault(span.context.trace_id, {})
        parent = span.parent_id if span.parent_id in known else None
        children.setdefault(parent, []).append(span)
    return [list(_rows(children, None, 0)) for children in by_trace.values()]


def _rows(
    children: dict[str | None, list[Span]], parent: str | None, depth: int
) -> Iterator[tuple[Span, int]]:
    for span in children.get(parent, ()):
        yield span, depth
        yield from _rows(children, span.context.span_id, depth + 1)
