"""Turn detection with the names and the meaning of Flux.

The thresholds of the bus are probabilities that the user goes on. Those of Flux are probabilities
that the turn is over:

| the bus | Flux |
|---|---|
| `turn_end_threshold` | `eot_threshold`: 1 minus it |
| `turn_eager_end_threshold` | `eager_eot_threshold`: 1 minus it, 0.3 to `eot_threshold` |
| `turn_end_timeout_ms` | `eot_timeout_ms`, at most 10,000 |
| `turn_start_threshold` | none |
"""

import msgspec

from schemas.audio import TurnConfig
from schemas.flux import Thresholds

MIN_EAGER = 0.3
MAX_TIMEOUT_MS = 10_000
"""Ranges that every version of Flux accepts."""


def thresholds(turn: TurnConfig) -> Thresholds:
    """Return the settings that Flux can use, with its names.

    Flux rejects an eager threshold above that of the end, as settings of the fleet and the session
    may have together.
    """
    eager, end, timeout_ms = (
        _confidence(turn.turn_eager_end_threshold),
        _confidence(turn.turn_end_threshold),
        turn.turn_end_timeout_ms,
    )
    if eager is not None and end is not None:
        eager = min(eager, end)
    return Thresholds(
        eager_eot_threshold=None if unusable(turn) else eager,
        eot_threshold=end,
        eot_timeout_ms=None if timeout_ms is None else round(min(timeout_ms, MAX_TIMEOUT_MS)),
    )


def changes(before: TurnConfig, newer: TurnConfig) -> Thresholds:
    """Return the settings to send: the newer ones, and those that change because of them."""
    old, given = (msgspec.to_builtins(thresholds(turn)) for turn in (before, newer))
    new = msgspec.to_builtins(thresholds(before.merged(newer)))
    changed = {name: new[name] for name in new if name in given or new[name] != old.get(name)}
    return Thresholds(**changed)


def merged(older: Thresholds, newer: Thresholds) -> Thresholds:
    """Return settings, overridden by those that are set in `newer`."""
    return msgspec.structs.replace(older, **msgspec.to_builtins(newer))


def unusable(turn: TurnConfig) -> list[str]:
    """Return a line for each setting that Flux cannot use."""
    eager = _confidence(turn.turn_eager_end_threshold)
    if eager is None or eager >= MIN_EAGER:
        return []
    limit = f"provider flux takes a turn_eager_end_threshold of {1 - MIN_EAGER:g} at most"
    return [f"{limit} and ignores a higher one; if none is set, it sends no turn.eager_end"]


def _confidence(threshold: float | None) -> float | None:
    """Return the confidence in the end at which the bus's probability is below a threshold."""
    return None if threshold is None else round(1 - threshold, 6)
