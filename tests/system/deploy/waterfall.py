"""The spans of a trace over time, drawn by matplotlib as SVG."""

from collections.abc import Iterator, Sequence
from typing import Final

from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, StrMethodFormatter
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.collector import attributes
from tests.system.deploy.charts import svg

_PRODUCER: Final = "#94a3b8"
_COLORS: Final = {
    "process stt.audio": "#2b6ca3",
    "connect stt": "#c2410c",
    "flush stt": "#7c3aed",
    "receive stt.sessions": "#15803d",
    "release stt.sessions": "#15803d",
}


def draw(title: str, spans: Sequence[Span]) -> str:
    """Draw one trace, with each span in a row under that of its parent."""
    rows = list(_rows(spans, b"", 0))
    began = min(span.start_time_unix_nano for span in spans)
    figure = Figure(figsize=(8.6, 0.8 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    for row, (span, _) in enumerate(rows):
        at_s = (span.start_time_unix_nano - began) / 1e9
        length_s = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        color = _COLORS.get(span.name, _PRODUCER)
        bar = axes.barh(row, max(length_s, 0.02), left=at_s, height=0.6, color=color)
        axes.bar_label(bar, [_remark(span, length_s)], padding=4, color=color)
    axes.set_yticks(range(len(rows)), [span.name for span, _ in rows])
    for label, (_, depth) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_horizontalalignment("left")
        label.set_x(-0.3 + 0.02 * depth)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MultipleLocator(1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f} s"))
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#0001")
    return svg(figure, title)


def _rows(spans: Sequence[Span], parent: bytes, depth: int) -> Iterator[tuple[Span, int]]:
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        if span.parent_span_id == parent:
            yield span, depth
            yield from _rows(spans, span.span_id, depth + 1)


def _remark(span: Span, length_s: float) -> str:
    values = attributes(span.attributes)
    size = f"{length_s:.1f} s" if length_s >= 1 else f"{length_s * 1000:.0f} ms"
    more = values.get("turnbus.turn.end_reason") or values.get("turnbus.claim.verdict") or ""
    return f"{size} {more}".rstrip().replace("_", " ")
