"""A client's request for Flux: path, credentials and query parameters. No I/O.

Everything is checked at the upgrade. Where the provider's documentation leaves a choice, this
server behaves as follows:

- Unknown parameters are ignored.
- A sample rate outside the documented five is refused, unless `any_rate` is set.
- A Bearer token has the three parts of a JWT; its expiry is not checked.
- Containers and Opus are refused, because the engines decode raw audio only.
"""

import hmac
import math
from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from websockets.datastructures import Headers

from schemas.pcm import Encoding
from worker.local.emulator.engines.base import AudioFormat, TurnSettings
from worker.local.emulator.messages import ClientFault, Problem
from worker.local.emulator.providers.flux_messages import Configuration, Thresholds
from worker.local.emulator.settings import FluxSettings
from worker.local.emulator.upgrade import RATES, Params

PATH: Final = "/v2/listen"
ENCODINGS: Final = {
    "linear16": Encoding.PCM_S16LE,
    "linear32": Encoding.PCM_S32LE,
    "mulaw": Encoding.PCM_MULAW,
    "alaw": Encoding.PCM_ALAW,
}
SAMPLE_RATES: Final = (8_000, 16_000, 24_000, 44_100, 48_000)
MULTI: Final = "flux-general-multi"
LANGUAGES: Final = ("en", "es", "fr", "de", "hi", "ru", "pt", "ja", "it", "nl")
KEYTERMS_MAX: Final = 100
KEYTERM_TOKENS_MAX: Final = 500

_EOT: Final = (0.5, 1.0)
_EAGER: Final = (0.3, 0.9)
_TIMEOUT_MS: Final = (500, 60_000)
_DEFAULTS: Final = Thresholds(None, 0.7, 5_000)
_TAG_CHARACTERS_MAX: Final = 128
_INVALID_THRESHOLD: Final = "INVALID_THRESHOLD"


class FluxParams(Params, frozen=True):
    """Validated parameters of a connection."""

    configuration: Configuration


class FluxRequest:
    """One upgrade request: `target` is the request line's path and query, as sent."""

    def __init__(self, target: str, headers: Headers) -> None:
        self.path, _, query = target.partition("?")
        self._query = tuple(parse_qsl(query, keep_blank_values=True))
        self._headers = headers

    def problem(self, settings: FluxSettings, api_keys: frozenset[str] | None) -> Problem | None:
        """Return why the upgrade must be refused; None if it is valid."""
        if self.path == "/v1/listen":
            return Problem(400, "Bad request", f"Flux models are served at {PATH}.")
        if self.path != PATH:
            return Problem(404, "Not found", f"The endpoint is {PATH}.")
        if not self._authorized(api_keys):
            return Problem(
                401,
                "Invalid credentials",
                "Send a valid key as Authorization: Token, or a temporary token as Bearer.",
            )
        try:
            self.params(settings)
        except ClientFault as fault:
            return fault.problem
        return None

    def params(self, settings: FluxSettings) -> FluxParams:
        """Parse the query. Raises ClientFault at the first invalid parameter."""
        given = dict(self._query)
        model = given.get("model", "")
        if model not in settings.models:
            raise _Refused(
                "The model does not exist, or your project has no access to it.", status=403
            )
        thresholds = check_thresholds(
            Thresholds(
                _number(given, "eager_eot_threshold") or None,
                _number(given, "eot_threshold") or _DEFAULTS.eot_threshold,
                _whole(given, "eot_timeout_ms") or _DEFAULTS.eot_timeout_ms,
            )
        )
        _check_others(given, self._values("tag"))
        configuration = Configuration(
            thresholds,
            check_keyterms(self._values("keyterm")),
            check_language_hints(self._values("language_hint"), model),
            _flag(given, "numerals"),
        )
        return FluxParams(
            model=model,
            audio=AudioFormat(_encoding(given), _sample_rate(given, settings)),
            turn=turn_settings(thresholds),
            keyterms=configuration.keyterms,
            configuration=configuration,
        )

    def _values(self, name: str) -> tuple[str, ...]:
        return tuple(value for each, value in self._query if each == name)

    def _authorized(self, api_keys: frozenset[str] | None) -> bool:
        scheme, _, credential = self._header("Authorization").partition(" ")
        if not scheme:
            scheme, _, credential = self._header("Sec-WebSocket-Protocol").partition(",")
        credential = credential.strip()
        is_token = credential.count(".") == 2
        if not credential or {"token": False, "bearer": True}.get(scheme.lower()) is not is_token:
            return False
        if api_keys is None:
            return True
        given = credential.encode(errors="surrogateescape")  # as websockets decodes a header
        return any(hmac.compare_digest(given, key.encode()) for key in api_keys)

    def _header(self, name: str) -> str:
        values = self._headers.get_all(name)
        return values[0].strip() if values else ""


class _Refused(ClientFault):
    """A request that is refused: `code` is the one that `ConfigureFailure` has for it."""

    def __init__(self, message: str, code: str | None = None, *, status: int = 400) -> None:
        super().__init__("Bad request", message, code)
        self.problem = Problem(status, "Bad request", message, code)


def check_thresholds(thresholds: Thresholds) -> Thresholds:
    """Return valid thresholds. Raises ClientFault if one is out of range, or eager above eot."""
    eager, eot, timeout_ms = msgspec.structs.astuple(thresholds)
    for name, value, (low, high) in (
        ("eot_threshold", eot, _EOT),
        ("eager_eot_threshold", eager, _EAGER),
        ("eot_timeout_ms", timeout_ms, _TIMEOUT_MS),
    ):
        if value is not None and not low <= value <= high:
            raise _Refused(f"{name} must be from {low:g} to {high:g}.", _INVALID_THRESHOLD)
    if eager is not None and eager > eot:
        raise _Refused("eager_eot_threshold must not exceed eot_threshold.", _INVALID_THRESHOLD)
    return thresholds


def check_keyterms(keyterms: Sequence[str]) -> tuple[str, ...]:
    """Return valid keyterms. Raises ClientFault if there are too many; tokens are words here."""
    tokens = sum(len(term.split()) for term in keyterms)
    if len(keyterms) > KEYTERMS_MAX or tokens > KEYTERM_TOKENS_MAX:
        raise _Refused("Keyterm limit exceeded", "KEYTERM_LIMIT_EXCEEDED")
    return tuple(keyterms)


def check_language_hints(hints: Sequence[str], model: str) -> tuple[str, ...]:
    """Return valid language hints. Raises ClientFault for a language that the model lacks."""
    if hints and model != MULTI:
        raise _Refused(f"language_hint requires the model {MULTI}.", "INVALID_LANGUAGE_HINT")
    if not set(hints) <= set(LANGUAGES):
        raise _Refused(
            f"language_hint must be one of {', '.join(LANGUAGES)}.", "INVALID_LANGUAGE_HINT"
        )
    return tuple(hints)


def turn_settings(thresholds: Thresholds) -> TurnSettings:
    """Return the settings of the engine, whose thresholds count down from 1.

    Without an eager threshold, the engine's eager end coincides with the end.
    """
    eager, eot, timeout_ms = msgspec.structs.astuple(thresholds)
    return TurnSettings(
        eager_end=round(1 - (eot if eager is None else eager), 9),
        end=round(1 - eot, 9),
        end_timeout_ms=float(timeout_ms),
    )


def _encoding(given: dict[str, str]) -> str:
    encoding = given.get("encoding", "")
    if encoding not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        raise _Refused(f"This server decodes raw audio only: encoding must be one of {known}.")
    return ENCODINGS[encoding].value


def _sample_rate(given: dict[str, str], settings: FluxSettings) -> int:
    rate = _whole(given, "sample_rate")
    low, high = RATES
    if rate is None or not (low <= rate <= high if settings.any_rate else rate in SAMPLE_RATES):
        known = f"from {low} to {high}" if settings.any_rate else f"one of {SAMPLE_RATES}"
        raise _Refused(f"sample_rate must be {known}.")
    return rate


def _check_others(given: dict[str, str], tags: Sequence[str]) -> None:
    """Check the parameters that have no effect here."""
    for name in ("profanity_filter", "mip_opt_out"):
        _flag(given, name)
    if given.get("redact", "numbers") not in ("numbers", "aggressive_numbers"):
        raise _Refused("redact must be numbers or aggressive_numbers.")
    if any(len(tag) > _TAG_CHARACTERS_MAX for tag in tags):
        raise _Refused(f"A tag has at most {_TAG_CHARACTERS_MAX} characters.")


def _flag(given: dict[str, str], name: str) -> bool:
    text = given.get(name, "false")
    if text not in ("true", "false"):
        raise _Refused(f"{name} must be true or false.")
    return text == "true"


def _number(given: dict[str, str], name: str) -> float | None:
    if name not in given:
        return None
    try:
        number = float(given[name])
    except ValueError:
        raise _Refused(f"{name} must be a number.", _INVALID_THRESHOLD) from None
    if not math.isfinite(number) or number <= 0:
        raise _Refused(f"{name} must be a number above 0.", _INVALID_THRESHOLD)
    return number


def _whole(given: dict[str, str], name: str) -> int | None:
    if name not in given:
        return None
    text = given[name]
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):
        raise _Refused(f"{name} must be a whole number above 0.")
    return int(text)
