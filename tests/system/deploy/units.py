"""Numbers in the units of a Grafana dashboard, as its axes and stats format them."""

import math
from typing import Final, NamedTuple


class _Scale(NamedTuple):
    """Divisor and suffix for numbers from a limit on."""

    at_least: float
    suffix: str


_SCALES: Final[dict[str, tuple[_Scale, ...]]] = {
    "s": (_Scale(60, " min"), _Scale(1, " s"), _Scale(1e-3, " ms"), _Scale(1e-6, " µs")),
    "short": (_Scale(1e6, " M"), _Scale(1e3, " k"), _Scale(1, "")),
    "ops": (_Scale(1e3, " k ops/s"), _Scale(1, " ops/s")),
    "percentunit": (_Scale(0.01, "%"),),
    "bytes": (_Scale(2**20, " MiB"), _Scale(2**10, " KiB"), _Scale(1, " B")),
    "Bps": (_Scale(1e6, " MB/s"), _Scale(1e3, " kB/s"), _Scale(1, " B/s")),
}
_OF_ZERO: Final = {"s": _Scale(1, " s")}
"""The scale of zero, where it is not the last scale."""

_STEPS: Final = (1, 2, 2.5, 5, 10)
_EXACT: Final = 1 - 1e-9
"""Tolerance, so that rounding makes no number a little larger than it is."""


def formatted(value: float, unit: str) -> str:
    """Format a number of a unit with three digits. Raises KeyError for an unknown unit."""
    scales = _SCALES[unit]
    value = float(f"{value:.3g}")
    chosen = next((scale for scale in scales if abs(value) >= scale.at_least), scales[-1])
    if value == 0:
        chosen = _OF_ZERO.get(unit, chosen)
    return f"{value / chosen.at_least:.3g}{chosen.suffix}"


def ticks(top: float, unit: str, at_most: int) -> list[float]:
    """Return round numbers from 0 up to the first that is not below `top`, at most `most`."""
    base = 1.0
    if unit == "bytes":
        base = next(at_least for at_least, _ in _SCALES[unit] if top >= at_least or at_least == 1)
    top = (top or 1.0) / base
    power = 10.0 ** math.floor(math.log10(top / at_most))
    step = next(step for step in _STEPS if step * power * at_most >= top * _EXACT) * power
    return [n * step * base for n in range(math.ceil(top * _EXACT / step) + 1)]
