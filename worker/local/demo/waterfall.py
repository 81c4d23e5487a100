"""The spans of the demo, drawn: a tree for each session, and when each span was."""

from collections.abc import Sequence
from typing import Final

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from worker.local.demo.spans import Span, traces

_BAR: Final = 24
_KILLED: Final = (
    "{} was killed: spans it had not exported yet are lost, those of its open turns above all."
)


def waterfall(spans: Sequence[Span], began_at: float, killed: str | None) -> Group:
    """Draw every trace; times are seconds from `began_at`, a Unix time."""
    told: list[Text | Padding] = [Text("Spans, a trace of each session", style="bold")]
    for rows in traces(spans):
        first = rows[0][0]
        head = Text(first.session, style="bold").append(f"  {first.context.trace_id[2:]}", "dim")
        told += [head, Padding(_table(rows, began_at), (0, 0, 0, 2))]
    if killed is not None:
        told.append(Text(_KILLED.format(killed), style="dim"))
    return Group(*told)


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
    """Draw a share of the whole, at least a cell of it."""
    first = min(_BAR - 1, int(start * _BAR))
    return " " * first + "━" * max(1, min(_BAR - first, round(length * _BAR)))


def _length(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _remark(span: Span) -> Text:
    """Tell what sets it apart from others of its name."""
    if span.status.status_code == "ERROR":
        return Text(span.status.description, style="red")
    told = span.attributes
    if "turnbus.turn" in told:
        again = ", taken over" if told["turnbus.turn.taken_over"] else ""
        return Text(f"turn {told['turnbus.turn']}{again}")
    return Text(told.get("turnbus.claim.verdict", ""))
