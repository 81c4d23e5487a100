"""Draws demand and workers over time as SVG."""

import itertools
from collections.abc import Sequence
from typing import Final, NamedTuple

_WIDTH: Final = 860
_HEIGHT: Final = 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 56, 48, 40
_DEMAND: Final = "#9ec5e8"
_WORKERS: Final = "#c2410c"


class Sample(NamedTuple):
    """State at one moment."""

    at_s: float
    demand: int
    """Number of entries of `stt:sessions`."""
    workers: int
    """Number of worker processes, including those that are stopping."""


def draw(title: str, samples: Sequence[Sample], rolled_s: tuple[float, float]) -> str:
    """Return a picture of a run; the time of the rolling restart is shaded."""
    last = samples[-1].at_s
    demand_top = _ceiling(max(each.demand for each in samples))
    workers_top = max(each.workers for each in samples) + 1

    def x(at_s: float) -> float:
        return _LEFT + at_s / last * (_WIDTH - _LEFT - _RIGHT)

    def y(share: float) -> float:
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    demand = _steps([(x(each.at_s), y(each.demand / demand_top)) for each in samples])
    workers = _steps([(x(each.at_s), y(each.workers / workers_top)) for each in samples])
    floor = y(0)
    began, done = map(x, rolled_s)
    right = _WIDTH - _RIGHT
    parts = [
        f"<title>{title}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 20, title, fill="#222", size=14),
        _text((began + done) / 2, _TOP - 6, "rolling restart", anchor="middle", fill="#666"),
        f'<path d="M{x(0):.1f} {floor} L{demand} L{x(last):.1f} {floor} Z" fill="{_DEMAND}"/>',
        f'<path d="M{began:.1f} {_TOP} H{done:.1f} V{floor} H{began:.1f} Z" fill="#0002"/>',
        f'<path d="M{workers}" fill="none" stroke="{_WORKERS}" stroke-width="2"/>',
        f'<path d="M{_LEFT} {floor} H{right}" stroke="#222"/>',
        *(
            _text(_LEFT - 8, y(n / demand_top) + 4, f"{n}", anchor="end")
            for n in range(0, demand_top + 1, max(1, demand_top // 5))
        ),
        *(_text(right + 8, y(n / workers_top) + 4, f"{n}") for n in range(workers_top + 1)),
        *(
            _text(x(at), floor + 16, f"{at} s", anchor="middle")
            for at in range(0, int(last) + 1, max(1, _ceiling(int(last)) // 10))
        ),
        _text(_LEFT, _TOP - 6, "sessions", fill="#2b6ca3"),
        _text(right, _TOP - 6, "workers", anchor="end", fill=_WORKERS),
    ]
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" role="img">'
    return "\n".join([head, *parts, "</svg>", ""])


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#444", size: int = 12
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{fill}" font-size="{size}">{text}</text>'


def _ceiling(count: int) -> int:
    """Return a round number that is not below the value."""
    step = 5
    while step * 10 < count:
        step *= 10
    return -(-count // step) * step or step


def _steps(points: Sequence[tuple[float, float]]) -> str:
    """Return a path that keeps each value until the next."""
    path = [f"{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (_, before), (x, y) in itertools.pairwise(points):
        if y != before:
            path += [f"{x:.1f} {before:.1f}", f"{x:.1f} {y:.1f}"]
    path.append(f"{points[-1][0]:.1f} {points[-1][1]:.1f}")
    return " L".join(path)
