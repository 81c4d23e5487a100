"""Charts of `deploy/`, drawn by matplotlib as SVG. Equal data gives an equal file."""

import re
from collections.abc import Sequence
from io import StringIO
from typing import Final, NamedTuple

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

GREY: Final = "#6b7280"
_DEMAND: Final = "#9ec5e8"
_WORKERS: Final = "#c2410c"

rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "turnbus",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 8,
        "axes.edgecolor": "#dfe2e7",
        "axes.titlelocation": "left",
        "axes.titlesize": 9,
        "axes.titleweight": "bold",
        "axes.xmargin": 0,
        "lines.linewidth": 1.2,
        "xtick.color": GREY,
        "ytick.color": GREY,
    }
)


class Sample(NamedTuple):
    """State at one moment."""

    at_s: float
    demand: int
    """Number of entries of `stt:sessions`."""
    workers: int
    """Number of worker processes, including those that are stopping."""


def svg(figure: Figure, title: str) -> str:
    """Return a figure as SVG; its title is the element of that name."""
    written = StringIO()
    figure.savefig(written, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
    short = re.sub(r"(\.\d\d)\d+", r"\1", written.getvalue())
    return re.sub(r' *\n(?=[LCz"])', " ", short)  # a path on one line


def draw_scaling(title: str, samples: Sequence[Sample], rolled_s: tuple[float, float]) -> str:
    """Draw demand and workers over time; the time of the rolling restart is shaded."""
    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    sessions = figure.subplots()
    workers = sessions.twinx()
    at_s, demand, running = zip(*samples, strict=True)
    sessions.set_title(title)
    sessions.fill_between(at_s, demand, step="post", color=_DEMAND)
    sessions.set_ylabel("sessions")
    sessions.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f} s"))
    workers.step(at_s, running, where="post", color=_WORKERS)
    workers.set_ylabel("workers", color=_WORKERS)
    workers.set_ylim(0, max(running) + 1)
    for axes in (sessions, workers):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    sessions.axvspan(*rolled_s, color="#0002", linewidth=0)
    middle = (sum(rolled_s) / 2, 0.97)
    sessions.annotate(
        "rolling restart", middle, xycoords=("data", "axes fraction"), ha="center", va="top"
    )
    return svg(figure, title)
