"""Draws the spans of a trace over time as SVG."""

from collections.abc import Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.collector import attributes

_WIDTH: Final = 860
_ROW: Final = 24
_LEFT: Final = 250
_RIGHT: Final = 110
_TOP: Final = 56
_YOURS: Final = "#94a3b8"
_COLOURS: Final = {
    "process stt.audio": "#2b6ca3",
    "connect stt": "#c2410c",
    "flush stt": "#7c3aed",
    "receive stt.sessions": "#15803d",
    "release stt.sessions": "#15803d",
}


def draw(title: str, spans: Sequence[Span]) -> str:
    """Return a picture of one trace, with each span in a row under that of its parent."""
    rows = list(_rows(spans, b"", 0))
    start = min(span.start_time_unix_nano for span in spans)
    length = max(span.end_time_unix_nano for span in spans) - start
    height = _TOP + _ROW * len(rows) + 16

    def x(nanoseconds: int) -> float:
        return _LEFT + (nanoseconds - start) / length * (_WIDTH - _LEFT - _RIGHT)

    parts = [
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        _text(12, 22, title, fill="#222", size=14),
    ]
    for second in range(int(length / 1e9) + 1):
        at = x(start + second * 10**9)
        parts += [
            f'<path d="M{at:.1f} {_TOP - 8} V{height - 12}" stroke="#0001"/>',
            _text(at, _TOP - 14, f"{second} s", anchor="middle"),
        ]
    for number, (span, depth) in enumerate(rows):
        y = _TOP + _ROW * number
        began, ended = x(span.start_time_unix_nano), x(span.end_time_unix_nano)
        colour = _COLOURS.get(span.name, _YOURS)
        parts += [
            _text(12 + 18 * depth, y + 14, span.name),
            _bar(began, y + 3, ended - began, colour),
            _text(max(ended, began + 3) + 6, y + 14, _remark(span), fill=colour),
        ]
    size = f'viewBox="0 0 {_WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" role="img">'
    return "\n".join([head, *parts, "</svg>", ""])


def _rows(spans: Sequence[Span], parent: bytes, depth: int) -> Iterator[tuple[Span, int]]:
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        if span.parent_span_id == parent:
            yield span, depth
            yield from _rows(spans, span.span_id, depth + 1)


def _remark(span: Span) -> str:
    values = attributes(span.attributes)
    length = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
    size = f"{length / 1000:.1f} s" if length >= 1000 else f"{length:.0f} ms"
    more = values.get("turnbus.turn.end_reason") or values.get("turnbus.claim.verdict") or ""
    return f"{size} {more}".rstrip().replace("_", " ")


def _bar(x: float, y: float, width: float, fill: str) -> str:
    place = f'x="{x:.1f}" y="{y}" width="{max(3.0, width):.1f}" height="14"'
    return f'<rect {place} rx="2" fill="{fill}"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#444", size: int = 12
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{fill}" font-size="{size}">{escape(text)}</text>'
