"""Spans of the demo: parsed from the output of OpenTelemetry's console exporter, and drawn.

They are drawn as a tree for each session, with a time bar for each span.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_BAR: Final = 24
_KILLED: Final = (
    "{} was killed: the spans it had not exported are lost, mainly those of its open turns."
)


class Span(msgspec.Struct, frozen=True, tag="demo.span"):
    """One span, with all fields that the exporter prints."""

    name: str
    context: dict[str, str]
    kind: str
    parent_id: str | None
    start_time: datetime
    end_time: datetime
    status: dict[str, str]
    attributes: dict[str, Any]
    events: list[Any]
    links: list[Any]
    resource: dict[str, Any]

    @property
    def session(self) -> str:
        """Session of the span."""
        named = ("messaging.message.conversation_id", "gen_ai.conversation.id")
        return next((self.attributes[name] for name in named if name in self.attributes), "")

    @property
    def process(self) -> str:
        """Id of the worker that created the span, or `demo`, which is the producer."""
        return str(self.resource["attributes"]["service.instance.id"])

    @property
    def seconds(self) -> float:
        """Duration of the span."""
        return (self.end_time - self.start_time).total_seconds()

    @property
    def remark(self) -> Text:
        """The error, the turn or the claim verdict of the span."""
        if self.status["status_code"] == "ERROR":
            return Text(self.status.get("description", ""), style="red")
        if "turnbus.turn" in self.attributes:
            again = ", taken over" if self.attributes["turnbus.turn.taken_over"] else ""
            return Text(f"turn {self.attributes['turnbus.turn']}{again}")
        return Text(self.attributes.get("turnbus.claim.verdict", ""))


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
    known = {span.context["span_id"] for span in spans}
    by_trace: dict[str, dict[str | None, list[Span]]] = {}
    for span in sorted(spans, key=lambda span: span.start_time):
        children = by_trace.setdefault(span.context["trace_id"], {})
        parent = span.parent_id if span.parent_id in known else None
        children.setdefault(parent, []).append(span)
    return [list(_rows(children, None, 0)) for children in by_trace.values()]


def _rows(
    children: dict[str | None, list[Span]], parent: str | None, depth: int
) -> Iterator[tuple[Span, int]]:
    for span in children.get(parent, ()):
        yield span, depth
        yield from _rows(children, span.context["span_id"], depth + 1)


def waterfall(spans: Sequence[Span], began_at: float, killed: str | None) -> Group:
    """Draw every trace; times are seconds from `began_at`, a Unix time."""
    parts: list[Text | Padding] = [Text("Spans, a trace of each session", style="bold")]
    for rows in traces(spans):
        first = rows[0][0]
        head = Text(first.session, style="bold").append(f"  {first.context['trace_id'][2:]}", "dim")
        parts += [head, Padding(_table(rows, began_at), (0, 0, 0, 2))]
    if killed is not None:
        parts.append(Text(_KILLED.format(killed), style="dim"))
    return Group(*parts)


def _table(rows: Sequence[tuple[Span, int]], began_at: float) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, style="cyan", width=_BAR)
    table.add_column(no_wrap=True, overflow="ellipsis")
    start = min(span.start_time.timestamp() for span, _ in rows)
    length = max(span.end_time.timestamp() for span, _ in rows) - start or 1.0
    for span, depth in rows:
        at, took = span.start_time.timestamp(), span.seconds
        table.add_row(
            f"{'  ' * depth}{span.name}",
            span.process,
            f"{at - began_at:.1f} s",
            f"{took:.2f} s" if took >= 1 else f"{took * 1000:.0f} ms",
            _bar((at - start) / length, took / length),
            span.remark,
        )
    return table


def _bar(start: float, length: float) -> str:
    """Draw a bar; `start` and `length` are shares of the total. Minimum one cell."""
    first = min(_BAR - 1, int(start * _BAR))
    return " " * first + "━" * max(1, min(_BAR - first, round(length * _BAR)))
