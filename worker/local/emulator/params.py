"""Query parameters of a connection. Like the provider, the server checks them after the upgrade.

Where the provider's documentation leaves a choice, this server behaves as follows:

- Every encoding accepts any sample rate from 8,000 to 192,000 Hz; the documented pairs are advice.
- If a parameter is repeated, the last value is used. `keyterm` may be repeated.
- Unknown parameters are ignored.
- Dated snapshots of a served model are served, too.
"""

import re
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from schemas.pcm import Encoding
from worker.local.emulator.engines.base import AudioFormat, TurnSettings
from worker.local.emulator.messages import ClientFault

KEYTERMS_MAX: Final = 100
KEYTERM_CHARACTERS_MAX: Final = 1_200
RATES: Final = (8_000, 192_000)

# The documentation and the SDK disagree on the maximum of eager_end (0.6 or 0.8). 0.8 is newer.
_RANGES: Final = {
    "start": (0.5, 0.9),
    "eager_end": (0.3, 0.8),
    "end": (0.05, 0.5),
    "end_timeout_ms": (640.0, 11_200.0),
}
_TURN_PARAMETERS: Final = {
    "turn_start_threshold": "start",
    "turn_eager_end_threshold": "eager_end",
    "turn_end_threshold": "end",
    "turn_end_timeout_ms": "end_timeout_ms",
}
_SNAPSHOT: Final = re.compile(r"-\d{4}-\d{2}-\d{2}$", re.ASCII)


class Params(msgspec.Struct, frozen=True):
    """Validated parameters of a connection."""

    model: str
    audio: AudioFormat
    turn: TurnSettings
    keyterms: tuple[str, ...]


def parse_params(
    query: Sequence[tuple[str, str]], defaults: TurnSettings, models: Collection[str]
) -> Params:
    """Parse a decoded query. Raises ClientFault at the first invalid parameter."""
    given = dict(query)
    model = given.get("model", "")
    if _SNAPSHOT.sub("", model) not in models:
        raise ClientFault(
            "Invalid model",
            "The model is not valid, make sure it is a valid model ID.",
            "model_not_found",
        )
    encoding = given.get("encoding", "")
    if encoding not in list(Encoding):
        raise ClientFault("Invalid encoding", f"encoding must be one of {', '.join(Encoding)}.")
    turn = msgspec.structs.replace(
        defaults,
        **{
            field: _number(given[name]) for name, field in _TURN_PARAMETERS.items() if name in given
        },
    )
    check_turn(turn)
    return Params(
        model=model,
        audio=AudioFormat(encoding, _sample_rate(given.get("sample_rate", ""))),
        turn=turn,
        keyterms=_keyterms([value for name, value in query if name == "keyterm"]),
    )


def check_turn(turn: TurnSettings) -> None:
    """Check the resulting settings.

    Raises ClientFault if one is out of range, or unless start > eager_end > end.
    """
    for name, (low, high) in _RANGES.items():
        value = getattr(turn, name)
        if not low <= value <= high:
            raise ClientFault(
                "Invalid turn thresholds",
                f"{name} must be from {low:g} to {high:g}, not {value:g}.",
            )
    if not turn.start > turn.eager_end > turn.end:
        raise ClientFault(
            "Invalid turn thresholds",
            "start must be above eager_end and eager_end above end, not "
            f"{turn.start:g}, {turn.eager_end:g}, {turn.end:g}.",
        )


def _number(text: str) -> float:
    try:
        return msgspec.json.decode(text, type=float)
    except msgspec.DecodeError as error:
        raise ClientFault(
            "Invalid turn thresholds", "Thresholds and timeout are numbers."
        ) from error


def _sample_rate(text: str) -> int:
    low, high = RATES
    try:
        rate = msgspec.json.decode(text, type=int)
    except msgspec.DecodeError as error:
        raise ClientFault(
            "Invalid sample rate", "sample_rate must be a whole number of Hz."
        ) from error
    if not low <= rate <= high:
        raise ClientFault("Invalid sample rate", f"sample_rate must be from {low} to {high} Hz.")
    return rate


def _keyterms(terms: list[str]) -> tuple[str, ...]:
    characters = sum(map(len, terms))
    if len(terms) > KEYTERMS_MAX or characters > KEYTERM_CHARACTERS_MAX:
        raise ClientFault(
            "Invalid keyterms",
            f"At most {KEYTERMS_MAX} keyterms of {KEYTERM_CHARACTERS_MAX} characters in all, not "
            f"{len(terms)} of {characters}.",
        )
    return tuple(terms)
