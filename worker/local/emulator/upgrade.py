"""A client's request: path, API version, credentials and query parameters. No I/O.

Like the provider, the server checks path, version and credentials at the upgrade, and the query
parameters after it. Where the provider's documentation leaves a choice, it behaves as follows:

- If a request has several credentials, X-API-Key precedes Authorization and access_token.
- Any well-formed date is a valid version.
- Credentials are checked at the upgrade only.
- Every encoding accepts any sample rate from 8,000 to 192,000 Hz; the documented pairs are advice.
- If a parameter is repeated, the last value is used. `keyterm` may be repeated.
- Unknown parameters are ignored.
- Dated snapshots of a served model are served, too.
"""

import hmac
import re
from collections.abc import Collection, Sequence
from datetime import date
from typing import Final, TypeVar
from urllib.parse import parse_qsl

import msgspec
from websockets.datastructures import Headers

from schemas.pcm import Encoding
from worker.local.emulator.engines.base import TURN_NAMES, AudioFormat, TurnSettings
from worker.local.emulator.messages import ClientFault, Problem

PATH: Final = "/stt/turns/websocket"

_JSON_ERRORS_SINCE: Final = date(2026, 3, 1)
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
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
    f"turn_{TURN_NAMES.get(field, field)}": field for field in TurnSettings.__struct_fields__
}
_BAD_TURN: Final = "Invalid turn thresholds"
_SNAPSHOT: Final = re.compile(r"-\d{4}-\d{2}-\d{2}$", re.ASCII)

N = TypeVar("N", int, float)


class Upgrade:
    """One upgrade request: `target` is the request line's path and query, as sent."""

    def __init__(self, target: str, headers: Headers) -> None:
        self.path, _, query = target.partition("?")
        self.query = tuple(parse_qsl(query, keep_blank_values=True))
        self._headers = headers

    def problem(self, api_keys: frozenset[str] | None) -> Problem | None:
        """Return why the upgrade must be refused; None if it is valid."""
        if self.path != PATH:
            return Problem(404, "Not Found", f"The endpoint is {PATH}.")
        if not self._authorized(api_keys):
            return Problem(
                401,
                "Unauthorized",
                "Send a valid key as X-API-Key or Authorization: Bearer, or an access_token.",
            )
        if self.version is None:
            return Problem(
                400,
                "Invalid version",
                "Send the API version as Cartesia-Version or cartesia_version: YYYY-MM-DD.",
            )
        return None

    @property
    def version(self) -> date | None:
        """The requested API version; None if not a date. The query precedes the header."""
        text = dict(self.query).get("cartesia_version", self._header("Cartesia-Version"))
        if not _DATE.fullmatch(text):
            return None
        try:
            return date.fromisoformat(text)
        except ValueError:  # such as 2026-02-30
            return None

    def error_body(self, problem: Problem, request_id: str) -> tuple[str, str]:
        """Return the content type and the body of an error response.

        Versions before 2026-03-01 get plain text. Requests without a version get JSON.
        """
        if self.version is not None and self.version < _JSON_ERRORS_SINCE:
            return "text/plain; charset=utf-8", f"{problem.title}: {problem.message}"
        body = {
            "error_code": problem.error_code,
            "title": problem.title,
            "message": problem.message,
            "request_id": request_id,
        }
        return "application/json", msgspec.json.encode(body).decode()

    def _authorized(self, api_keys: frozenset[str] | None) -> bool:
        key = self._header("X-API-Key")
        scheme, _, token = self._header("Authorization").partition(" ")
        if scheme.lower() != "bearer":
            token = ""
        credential = key or token.strip() or dict(self.query).get("access_token", "")
        if not credential or api_keys is None:
            return bool(credential)
        given = credential.encode(errors="surrogateescape")  # as websockets decodes a header
        return any(hmac.compare_digest(given, key.encode()) for key in api_keys)

    def _header(self, name: str) -> str:
        values = self._headers.get_all(name)
        return values[0].strip() if values else ""


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
    changes = {
        field: _number(given[name], float, _BAD_TURN, "Thresholds and timeout are numbers.")
        for name, field in _TURN_PARAMETERS.items()
        if name in given
    }
    turn = msgspec.structs.replace(defaults, **changes)
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
            raise ClientFault(_BAD_TURN, f"{name} must be from {low:g} to {high:g}, not {value:g}.")
    if not turn.start > turn.eager_end > turn.end:
        raise ClientFault(
            _BAD_TURN,
            "start must be above eager_end and eager_end above end, not "
            f"{turn.start:g}, {turn.eager_end:g}, {turn.end:g}.",
        )


def _sample_rate(text: str) -> int:
    low, high = RATES
    rate = _number(text, int, "Invalid sample rate", "sample_rate must be a whole number of Hz.")
    if not low <= rate <= high:
        raise ClientFault("Invalid sample rate", f"sample_rate must be from {low} to {high} Hz.")
    return rate


def _number(text: str, kind: type[N], title: str, message: str) -> N:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise ClientFault(title, message) from error


def _keyterms(terms: list[str]) -> tuple[str, ...]:
    characters = sum(map(len, terms))
    if len(terms) > KEYTERMS_MAX or characters > KEYTERM_CHARACTERS_MAX:
        raise ClientFault(
            "Invalid keyterms",
            f"At most {KEYTERMS_MAX} keyterms of {KEYTERM_CHARACTERS_MAX} characters in all, not "
            f"{len(terms)} of {characters}.",
        )
    return tuple(terms)
