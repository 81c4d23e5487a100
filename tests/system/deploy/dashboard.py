"""Draws the Grafana dashboard from a real run: `python -m tests.system.deploy.dashboard [FILE]`.

A small fleet meets injected faults. A real Prometheus scrapes it and evaluates the queries of
`dashboard.json` and the rules of `alerts.yaml`; only the drawing is not Grafana's. It takes six
minutes.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import Any, Final, NamedTuple

import anyio
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter

from tests.system.deploy.charts import GREY, svg
from tests.system.deploy.manifests import DEPLOY
from tests.system.deploy.prometheus import Prometheus, Series
from tests.system.deploy.rough import Mark, Rough

HERE: Final = DEPLOY / "observability"
SCRAPE_S: Final = 2
_RATE: Final = f"{4 * SCRAPE_S}s"
"""The value that Grafana substitutes for `$__rate_interval`."""

UNITS: Final[dict[str, Callable[[float], str]]] = {
    "s": EngFormatter("s"),
    "short": "{:g}".format,
    "ops": "{:g} ops/s".format,
    "percentunit": "{:.0%}".format,
    "bytes": EngFormatter("B"),
    "Bps": EngFormatter("B/s"),
}
"""Formatters of numbers by Grafana's names of units."""

_LEVELS: Final = {"green": "#3d8b2f", "orange": "#d9730d", "red": "#c4162a"}
"""Colors of thresholds by Grafana's names."""

_LEGEND: Final[dict[str, Any]] = {
    "loc": "upper left",
    "bbox_to_anchor": (0.02, 0.24),
    "frameon": False,
    "fontsize": 7,
    "handlelength": 1,
    "columnspacing": 1,
    "borderpad": 0,
    "labelspacing": 0.25,
}

# Sizes are in inches.
_COLUMNS: Final = 24
_COLUMN: Final = 0.46
_ROW: Final = 0.33
_GAP: Final = 0.08
_LINE: Final = 0.19
_WIDTH: Final = _COLUMNS * _COLUMN
_LINE_CHARS: Final = 140
"""Maximum length of a line above the panels."""


class Span(NamedTuple):
    """Time shown in Unix seconds, and times of the marks."""

    began: float
    ended: float
    marks: Sequence[float]


class Line(NamedTuple):
    """One line of a panel."""

    name: str
    unit: str
    right: bool
    """Whether the line belongs to the right axis."""
    points: Sequence[tuple[float, float]]
    """Unix time in seconds, and value."""


class Run(NamedTuple):
    """Result of a run."""

    found: dict[int, list[Line]]
    """Series of each panel, by its id."""
    span: Span
    done: list[str]
    """Actions, and when each was done."""
    fired: str
    """Alerts that fired, and when."""


def query(expression: str) -> str:
    """Substitute Grafana's variables."""
    return expression.replace("$__rate_interval", _RATE).replace("$job", ".*")


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


def picture(dashboard: Mapping[str, Any], run: Run) -> str:
    """Draw the dashboard of a run below two columns that list the actions."""
    rows = -(-len(run.done) // 2)
    fired = wrap(run.fired, _LINE_CHARS)
    top = 0.5 + _LINE * (rows + max(len(fired), 1))
    grids = [panel["gridPos"] for panel in dashboard["panels"]]
    height = top + _ROW * max(grid["y"] + grid["h"] for grid in grids)
    figure = Figure(figsize=(_WIDTH, height), facecolor="#f4f5f7")

    def write(text: str, left: float, down: float, **style: Any) -> None:
        figure.text(left / _WIDTH, 1 - down / height, text, **style)

    write(dashboard["title"], _GAP, 0.3, size=13, weight="bold")
    for number, done in enumerate(run.done):
        column, row = divmod(number, rows)
        write(done, _GAP + column * _WIDTH / 2, 0.55 + _LINE * row, size=9)
    for number, line in enumerate(fired, rows):
        write(line, _GAP, 0.55 + _LINE * number, size=9)
    for panel, grid in zip(dashboard["panels"], grids, strict=True):
        left, down = grid["x"] * _COLUMN + _GAP / 2, top + grid["y"] * _ROW
        if panel["type"] == "row":
            write(panel["title"], left + _GAP, down + 0.2, size=11, weight="bold")
            continue
        wide, high = grid["w"] * _COLUMN - _GAP, grid["h"] * _ROW - _GAP
        place = (left / _WIDTH, 1 - (down + high) / height, wide / _WIDTH, high / height)
        frame = figure.add_axes(place, xticks=[], yticks=[], facecolor="white")
        found = run.found[panel["id"]]
        if not found:
            frame.text(0.5, 0.45, "No data", ha="center", color=GREY, size=11)
        elif panel["type"] == "stat":
            _draw_stat(frame, panel, found[0], run.span)
        else:
            _draw_series(frame, panel, found, run.span)
        ink = "white" if found and panel["type"] == "stat" else "black"
        corner: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
        frame.annotate(panel["title"], (0, 1), (7, -13), color=ink, weight="bold", **corner)
    return svg(figure, dashboard["title"])


def _draw_stat(frame: Axes, panel: Mapping[str, Any], line: Line, span: Span) -> None:
    """Draw the last value large, on the color of its threshold, above its history."""
    last = line.points[-1][1]
    color = "green"
    for step in panel["fieldConfig"]["defaults"].get("thresholds", {"steps": ()})["steps"]:
        if step["value"] is None or last >= step["value"]:
            color = step["color"]
    frame.set_facecolor(_LEVELS[color])
    at, values = zip(*line.points, strict=True)
    history = frame.inset_axes((0, 0, 1, 0.3), xlim=(span.began, span.ended))
    history.set_axis_off()
    history.fill_between(at, values, color="white", alpha=0.25, linewidth=0)
    history.set_ylim(bottom=0)
    number = UNITS[line.unit](float(f"{last:.3g}"))
    frame.text(0.5, 0.4, number, ha="center", color="white", size=20, weight="bold")


def _draw_series(frame: Axes, panel: Mapping[str, Any], found: Sequence[Line], span: Span) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    stacked = custom["stacking"]["mode"] == "normal"
    # Lines that never leave 0 would overlap; they are counted instead.
    shown = [line for line in found if any(value for _, value in line.points)] or list(found)
    right = any(line.right for line in shown)
    wide = frame.get_position().width * _WIDTH
    plot = frame.inset_axes((0.55 / wide, 0.33, 1 - (1.1 if right else 0.7) / wide, 0.5))
    sides = {False: plot, True: plot.twinx()} if right else {False: plot}
    times = np.arange(span.began, span.ended + SCRAPE_S, SCRAPE_S)
    base = np.zeros_like(times)
    handles = []
    for nth, line in enumerate(shown):
        values = np.full_like(times, np.nan)  # a line is broken where points are missing
        for at, value in line.points:
            values[round((at - span.began) / SCRAPE_S)] = value
        marker = "." if len(line.points) == 1 else ""
        axes, color = sides[line.right], f"C{nth}"
        axes.yaxis.set_major_formatter(FuncFormatter(partial(_tick, line.unit)))
        if stacked:
            top = base + values
            axes.fill_between(times, base, top, color=color, alpha=0.2, linewidth=0)
            values, base = top, np.fmax(base, top)
        handles += axes.plot(times, values, color=color, marker=marker, label=line.name)
    if len(shown) < len(found):
        handles += plot.plot([], [], alpha=0, label=f"{len(found) - len(shown)} more at 0")
    for axes in sides.values():
        axes.set_ylim(0, max(axes.get_ylim()[1], 1e-3))
        axes.tick_params(length=0, labelsize=7)
        axes.spines[:].set_visible(False)
        axes.patch.set_visible(False)
        axes.locator_params(axis="y", nbins=4)
    if custom["thresholdsStyle"]["mode"] == "line":
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is not None and step["value"] <= plot.get_ylim()[1]:
                plot.axhline(step["value"], color=_LEVELS[step["color"]], linestyle="--", alpha=0.7)
    above = ("data", "axes fraction")
    for number, mark in enumerate(span.marks, 1):
        plot.axvline(mark, color=GREY, linestyle=":", linewidth=0.8, alpha=0.6)
        plot.annotate(f"{number}", (mark, 1.02), xycoords=above, ha="center", color=GREY, size=6)
    plot.set_xlim(span.began, span.ended)
    plot.set_xticks(np.arange(span.began, span.ended, 60))
    plot.xaxis.set_major_formatter(lambda at, _: _clock(at - span.began))
    plot.grid(axis="y", color="#e8eaed")
    columns = 3 if panel["gridPos"]["w"] < _COLUMNS else len(handles)
    frame.legend(handles=handles, ncols=columns, **_LEGEND)


def _tick(unit: str, value: float, _position: int | None) -> str:
    return UNITS[unit](value)


async def observe(dashboard: Mapping[str, Any]) -> Run:
    """Run the scenario, and query Prometheus for everything the dashboard shows."""
    with tempfile.TemporaryDirectory() as name:
        logs = Path(name)
        async with (
            Rough.open(logs) as rough,
            Prometheus.start(rough.ports, HERE / "alerts.yaml", SCRAPE_S, logs) as prometheus,
        ):
            began = time.time()
            await rough.run()
            span = Span(began, time.time(), [mark.at for mark in rough.marks])
            found = {
                panel["id"]: lines(
                    panel,
                    [
                        await prometheus.query(query(target["expr"]), began, span.ended, SCRAPE_S)
                        for target in panel["targets"]
                    ],
                )
                for panel in dashboard["panels"]
                if panel["type"] != "row"
            }
            fired = await _fired(prometheus, span)
    return Run(found, span, _done(rough.marks, began), fired)


def _done(marks: Sequence[Mark], began: float) -> list[str]:
    return [f"{nth}  {_clock(mark.at - began)}  {mark.what}" for nth, mark in enumerate(marks, 1)]


async def _fired(prometheus: Prometheus, span: Span) -> str:
    """Return which alerts fired, and when each fired first."""
    rows = await prometheus.query('ALERTS{alertstate="firing"}', span.began, span.ended, SCRAPE_S)
    first: dict[str, float] = {}
    for row in rows:
        name = row.labels["alertname"]
        first[name] = min(first.get(name, span.ended), row.points[0][0])
    by_time = sorted(first.items(), key=lambda item: item[1])
    fired = ", ".join(f"{name} at {_clock(at - span.began)}" for name, at in by_time)
    return f"Alerts that fired: {fired or 'none'}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def main() -> None:
    """Draw the dashboard to a file."""
    if not Prometheus.installed():
        sys.exit("this takes Prometheus, and `prometheus` is not on the PATH")
    dashboard = json.loads((HERE / "dashboard.json").read_text("utf-8"))
    run = anyio.run(observe, dashboard)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "dashboard.svg"
    path.write_text(picture(dashboard, run), "utf-8")


if __name__ == "__main__":
    main()
