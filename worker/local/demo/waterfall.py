"""Draws the spans of the demo: a tree for each session, with a time bar for each span."""

from collections.abc import Sequence
from typing import Final

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from worker.local.demo.spans import Span, traces

_BAR: Final = 24
_KILLED: Final = (
    "{} was killed: the spans it had not exported are lost, mainly those of its open turns."
)


def waterfall(spans: Sequence[Span], began_at: float, killed: str | None) -> Group:
    """Draw every trace; times are seconds from `began_at`, a Unix time."""
    parts: list[Text | Padding] = [Text("Spans, a trace of each session", style="bold")]
    for rows in traces(spans):
        first = rows[0][0]
        head = Text(first.session, style="bold").append(f"  {first.context.trace_id[2:]}", "dim")
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
        at = span.start_time.timestamp()
        bar = _bar((at - start) / length, span.seconds / length)
        table.add_row(
            f"{'  ' * depth}{span.name}",
            span.process,
            f"{at - began_at:.1f} s",
            _length(span.seconds),
            bar,
            _remark(span),
        )
    return table


def _bar(start: float, length: float) -> str:
    """Draw a bar; `start` and `length` are shares of the total. Minimum one cell."""
    first = min(_BAR - 1, int(start * _BAR))
    return " " * first + "━" * max(1, min(_BAR - first, round(length * _BAR)))


def _length(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _remark(span: Span) -> Text:
    """Return the error, the turn or the claim verdict of a span."""
    if span.status.status_code == "ERROR":
        return Text(span.status.description, style="red")
    attributes = span.attributes
    if "turnbus.turn" in attributes:
        again = ", taken over" if attributes["turnbus.turn.taken_over"] else ""
        return Text(f"turn {attributes['turnbus.turn']}{again}")
    return Text(attributes.get("turnbus.claim.verdict", ""))
