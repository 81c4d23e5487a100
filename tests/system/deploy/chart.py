"""Draws panels of a Grafana dashboard as SVG: stats and time series. No I/O."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tests.system.deploy.plot import GREY, THRESHOLDS, Plot, Points, Span, path, text
from tests.system.deploy.prometheus import Series
from tests.system.deploy.units import formatted, ticks

_COLOURS: Final = (
    *("#3d8b2f", "#c98a00", "#2f6fc4", "#d9480f", "#c2255c", "#0c8599", "#7048a8", "#8a6d3b"),
    *("#5c940d", "#495057"),
)
_TICKS: Final = 4
_MARGIN: Final = 10
_TOP: Final = 36
_AXIS: Final = 58
_FOOT: Final = 39
"""Height of the time axis and of the first line of the legend."""

_LINE: Final = 16
_CHARACTER: Final = 6.3
"""Width of one character in a legend."""


class Box(NamedTuple):
    """Position and size of a panel."""

    x: float
    y: float
    width: float
    height: float


class Line(NamedTuple):
    """One line of a panel."""

    name: str
    unit: str
    right: bool
    """Whether the line belongs to the right axis."""
    points: Points


def lines(panel: Mapping[str, Any], answers: Sequence[Sequence[Series]]) -> list[Line]:
    """Name the series that a panel's queries returned, query by query, as its legend does."""
    defaults = panel["fieldConfig"]["defaults"]
    overrides: dict[str, dict[str, str]] = {
        override["matcher"]["options"]: {
            each["id"]: each["value"] for each in override["properties"]
        }
        for override in panel["fieldConfig"]["overrides"]
    }
    found = []
    for target, answer in zip(panel["targets"], answers, strict=True):
        for series in answer:
            name = target["legendFormat"]
            for label, value in series.labels.items():
                name = name.replace(f"{{{{{label}}}}}", value)
            own = overrides.get(name, {})
            right = own.get("custom.axisPlacement") == "right"
            if series.points:
                found.append(Line(name, own.get("unit", defaults["unit"]), right, series.points))
    return found


def draw(panel: Mapping[str, Any], found: Sequence[Line], box: Box, span: Span) -> Iterator[str]:
    """Draw one panel."""
    if not found:
        yield from _frame(panel, box, "#fff", "#111")
        middle = (box.x + box.width / 2, box.y + box.height / 2 + 6)
        yield text(*middle, "No data", anchor="middle", fill=GREY, size=15)
    elif panel["type"] == "stat":
        yield from _stat(panel, found[0], box, span)
    else:
        yield from _frame(panel, box, "#fff", "#111")
        yield from _time_series(panel, found, box, span)


def _frame(panel: Mapping[str, Any], box: Box, fill: str, ink: str) -> Iterator[str]:
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    yield f'<rect {place} rx="3" fill="{fill}" stroke="#dfe2e7"/>'
    size = 11 if panel["type"] == "stat" else 13
    yield text(box.x + _MARGIN, box.y + 20, panel["title"], fill=ink, size=size, weight=600)


def _stat(panel: Mapping[str, Any], line: Line, box: Box, span: Span) -> Iterator[str]:
    """Draw the last value large, on its threshold colour, above its history."""
    last = line.points[-1][1]
    colour = _level(panel["fieldConfig"]["defaults"].get("thresholds"), last)
    yield from _frame(panel, box, colour, "#fff")
    low = box.y + box.height - 6
    plot = Plot(box.x, box.x + box.width, low - 34, low, span)
    ceiling = max(value for _, value in line.points) or 1.0
    for over, under in plot.outlines(line.points, (), ceiling):
        area = f"{path(over)} L{path(under[::-1])} Z"
        yield f'<path d="M{area}" fill="#fff" opacity="0.25"/>'
    middle = box.x + box.width / 2
    number = formatted(last, line.unit)
    yield text(middle, box.y + 66, number, anchor="middle", fill="#fff", size=30, weight=600)


def _level(thresholds: Mapping[str, Any] | None, value: float) -> str:
    """Return the threshold colour of a number; green without thresholds."""
    colour = "green"
    for step in thresholds["steps"] if thresholds else ():
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return THRESHOLDS[colour]


def _time_series(
    panel: Mapping[str, Any], found: Sequence[Line], box: Box, span: Span
) -> Iterator[str]:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    # Lines that never leave 0 would overlap; they are counted instead.
    shown = [line for line in found if any(value for _, value in line.points)] or list(found)
    names = [line.name for line in shown]
    if len(shown) < len(found):
        names.append(f"{len(found) - len(shown)} more at 0")
    legend = list(_legend(names, box))
    bottom = box.y + box.height - _FOOT - _LINE * legend[-1][0]
    right = box.x + box.width - (_AXIS if any(line.right for line in shown) else _MARGIN + 4)
    plot = Plot(box.x + _AXIS, right, box.y + _TOP, bottom, span)
    stacked = custom["stacking"]["mode"] == "normal"
    drawn = _stack(shown) if stacked else [(line.points, ()) for line in shown]
    yield from plot.time_axis()
    ceilings = {}
    for side in {line.right for line in shown}:
        own = [points for line, (points, _) in zip(shown, drawn, strict=True) if line.right == side]
        unit = next(line.unit for line in shown if line.right == side)
        values = ticks(max(value for points in own for _, value in points), unit, _TICKS)
        ceilings[side] = values[-1]
        yield from plot.value_axis(values, unit, right=side)
    if custom["thresholdsStyle"]["mode"] == "line":
        yield from plot.thresholds(defaults["thresholds"], ceilings[False])
    yield from plot.marks()
    opacity = custom["fillOpacity"] / 100
    for nth, (line, (upper, lower)) in enumerate(zip(shown, drawn, strict=True)):
        yield from plot.curve(upper, lower, ceilings[line.right], _colour(nth), opacity)
    for nth, (row, x) in enumerate(legend):
        y = bottom + _FOOT - 9 + _LINE * row
        if nth < len(shown):
            place = f'x="{x:.1f}" y="{y - 6:.1f}" width="12" height="4"'
            yield f'<rect {place} rx="1" fill="{_colour(nth)}"/>'
            yield text(x + 17, y, names[nth], size=11)
        else:
            yield text(x, y, names[nth], fill=GREY, size=11)


def _stack(found: Sequence[Line]) -> list[tuple[Points, Sequence[float]]]:
    """Stack each line on those before it; return it with its base at each point."""
    below: dict[float, float] = {}
    stacked: list[tuple[Points, Sequence[float]]] = []
    for line in found:
        lower = [below.get(at, 0.0) for at, _ in line.points]
        upper = [(at, value + under) for (at, value), under in zip(line.points, lower, strict=True)]
        below.update(upper)
        stacked.append((upper, lower))
    return stacked


def _legend(names: Sequence[str], box: Box) -> Iterator[tuple[int, float]]:
    """Place each name: its line, counted from the first, and its position."""
    first = box.x + _MARGIN + 4
    row, x = 0, first
    for name in names:
        width = 17 + len(name) * _CHARACTER + 12
        if x + width > box.x + box.width and x > first:
            row, x = row + 1, first
        yield row, x
        x += width


def _colour(nth: int) -> str:
    return _COLOURS[nth % len(_COLOURS)]
