"""Draws the Grafana dashboard from a real run: `python -m tests.system.deploy.dashboard [FILE]`.

A small fleet meets injected faults. A real Prometheus scrapes it and evaluates the queries of
`dashboard.json` and the rules of `alerts.yaml`; only the drawing is not Grafana's. It takes six
minutes.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio

from tests.system.deploy.chart import Box, Line, draw, lines
from tests.system.deploy.manifests import DEPLOY
from tests.system.deploy.plot import Span, text
from tests.system.deploy.prometheus import Prometheus
from tests.system.deploy.rough import Mark, Rough

HERE: Final = DEPLOY / "observability"
SCRAPE_S: Final = 2
_RATE: Final = f"{4 * SCRAPE_S}s"
"""The value that Grafana substitutes for `$__rate_interval`."""

_WIDTH: Final = 1104
_COLUMN: Final = _WIDTH / 24
_ROW: Final = 33
_GAP: Final = 8
_HEAD: Final = 52
_NOTE: Final = 18


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


def picture(dashboard: Mapping[str, Any], run: Run) -> str:
    """Draw the dashboard of a run below two columns that list the actions."""
    rows = -(-len(run.done) // 2)
    top = _HEAD + _NOTE * (rows + 1)
    bottom = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in dashboard["panels"])
    height = top + bottom * _ROW + _GAP
    parts = [
        f"<title>{dashboard['title']}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#f4f5f7"/>',
        text(_GAP, 30, dashboard["title"], fill="#111", size=18, weight=600),
        text(_GAP, _HEAD + 2 + _NOTE * rows, run.fired),
    ]
    for nth, done in enumerate(run.done):
        column, row = divmod(nth, rows)
        parts.append(text(_GAP + column * _WIDTH / 2, _HEAD + 2 + _NOTE * row, done))
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        box = Box(
            grid["x"] * _COLUMN + _GAP / 2,
            top + grid["y"] * _ROW,
            grid["w"] * _COLUMN - _GAP,
            grid["h"] * _ROW - _GAP,
        )
        if panel["type"] == "row":
            title = text(box.x + 4, box.y + 20, panel["title"], fill="#111", size=15, weight=600)
            parts.append(title)
        else:
            parts += draw(panel, run.found[panel["id"]], box, run.span)
    size = f'viewBox="0 0 {_WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" role="img">'
    return "\n".join([head, *parts, "</svg>", ""])


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
            span = Span(began, time.time(), SCRAPE_S, [mark.at for mark in rough.marks])
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
