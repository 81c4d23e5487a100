"""The area inside the axes of a chart, as SVG: axes, thresholds, marks and curves. No I/O."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias
from xml.sax.saxutils import escape

from tests.system.deploy.units import formatted

GREY: Final = "#6b7280"
THRESHOLDS: Final = {"green": "#3d8b2f", "orange": "#d9730d", "red": "#c4162a"}
"""Colours by Grafana's names."""

Points: TypeAlias = Sequence[tuple[float, float]]
"""Unix time in seconds and value, or their place in the picture."""


class Span(NamedTuple):
    """Time shown in Unix seconds, seconds between points, and times of the marks."""

    began: float
    ended: float
    step_s: int
    marks: Sequence[float]


class Plot:
    """Maps times and values to the picture's units between four sides."""

    def __init__(self, left: float, right: float, top: float, bottom: float, span: Span) -> None:
        self._left, self._right, self._top, self._bottom = left, right, top, bottom
        self._span = span

    def _x(self, at: float) -> float:
        share = (at - self._span.began) / (self._span.ended - self._span.began)
        return self._left + share * (self._right - self._left)

    def _y(self, value: float, ceiling: float) -> float:
        return self._bottom - value / ceiling * (self._bottom - self._top)

    def time_axis(self) -> Iterator[str]:
        """Draw the time axis in minutes."""
        for minute in range(int((self._span.ended - self._span.began) / 60) + 1):
            x = self._x(self._span.began + 60 * minute)
            yield text(x, self._bottom + 14, f"{minute}:00", anchor="middle", fill=GREY, size=10)

    def value_axis(self, values: Sequence[float], unit: str, *, right: bool) -> Iterator[str]:
        """Draw the numbers of an axis; the left axis gets grid lines."""
        x, anchor = (self._right + 6, "start") if right else (self._left - 6, "end")
        for value in values:
            y = self._y(value, values[-1])
            if not right:
                yield f'<path d="M{self._left:.1f} {y:.1f} H{self._right:.1f}" stroke="#e8eaed"/>'
            yield text(x, y + 3.5, formatted(value, unit), anchor=anchor, fill=GREY, size=10)

    def thresholds(self, config: Mapping[str, Any], ceiling: float) -> Iterator[str]:
        """Draw a line at each threshold that is on the axis."""
        for step in config["steps"]:
            if step["value"] is not None and step["value"] <= ceiling:
                y, colour = self._y(step["value"], ceiling), THRESHOLDS[step["color"]]
                yield (
                    f'<path d="M{self._left:.1f} {y:.1f} H{self._right:.1f}" stroke="{colour}" '
                    'stroke-dasharray="6 4" opacity="0.7"/>'
                )

    def marks(self) -> Iterator[str]:
        """Draw numbered marks at the times of the actions."""
        for number, at in enumerate(self._span.marks, 1):
            x = self._x(at)
            yield (
                f'<path d="M{x:.1f} {self._top - 1:.1f} V{self._bottom:.1f}" stroke="{GREY}" '
                'stroke-dasharray="2 3" opacity="0.6"/>'
            )
            yield text(x, self._top - 3, f"{number}", anchor="middle", fill=GREY, size=9)

    def curve(
        self, upper: Points, lower: Sequence[float], ceiling: float, colour: str, opacity: float
    ) -> Iterator[str]:
        """Draw a line, broken where points are missing, and the area down to `lower`, or to 0."""
        for over, under in self.outlines(upper, lower, ceiling):
            area = f"{path(over)} L{path(under[::-1])} Z"
            yield f'<path d="M{area}" fill="{colour}" opacity="{opacity:g}"/>'
            if len(over) == 1:
                ((x, y),) = over
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" fill="{colour}"/>'
            else:
                yield (
                    f'<path d="M{path(over)}" fill="none" stroke="{colour}" '
                    'stroke-width="1.5" stroke-linejoin="round"/>'
                )

    def outlines(
        self, upper: Points, lower: Sequence[float], ceiling: float
    ) -> Iterator[tuple[Points, Points]]:
        """Place each unbroken part of a line, and its base."""
        floor = iter(lower or itertools.repeat(0.0))
        for part in _unbroken(upper, self._span.step_s):
            over = [(self._x(at), self._y(value, ceiling)) for at, value in part]
            yield over, [(x, self._y(next(floor), ceiling)) for x, _ in over]


def _unbroken(points: Points, step_s: int) -> Iterator[Points]:
    """Split points where one or more are missing."""
    begin = 0
    for nth, ((before, _), (at, _)) in enumerate(itertools.pairwise(points), 1):
        if at - before > 1.5 * step_s:
            yield points[begin:nth]
            begin = nth
    yield points[begin:]


def path(points: Points) -> str:
    """Write points as a path, without those in the middle of a level stretch."""
    levels = [f"{y:.1f}" for _, y in points]
    bends = (
        f"{x:.1f} {level}"
        for (x, _), before, level, after in zip(
            points, [None, *levels], levels, [*levels[1:], None], strict=False
        )
        if not before == level == after
    )
    return " L".join(bends)


def text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    fill: str = "#374151",
    size: int = 12,
    weight: int = 400,
) -> str:
    """Write a text."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    bold = f' font-weight="{weight}"' if weight != 400 else ""
    return f'<text {place} fill="{fill}" font-size="{size}"{bold}>{escape(words)}</text>'
