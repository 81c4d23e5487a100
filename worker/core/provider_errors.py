"""What a failure of the STT service means, and how long to wait after it."""

import math
import random
import re

from worker.errors import (
    SttBusyError,
    SttCredentialsError,
    SttError,
    SttPermanentError,
    SttTooBigError,
    SttTransientError,
)

_PERMANENT = frozenset({400, 404, 413, 414, 422, 431})  # 413 and on: what key terms made too long
_CREDENTIALS = frozenset({401, 402, 403})
_CREDENTIAL_CODES = frozenset({"quota_exceeded", "plan_upgrade_required"})
_PERMANENT_CLOSES = frozenset({1002, 1003, 1007, 1008})
_TOO_BIG_CLOSE = 1009
_SENT = r"\b(?:messages?|frames?|payload|chunks?|packets?|body|entity|content)\b"
_EXCEEDS = r"\bexceed(?:s|ed|ing)?\b"
_SIZE = r"(?=.*\b(?:size|length|bytes?|[km]i?b)\b)"
_TOO_BIG = re.compile(
    rf"{_SENT}.{{0,20}}\btoo (?:big|large|long)\b|\btoo (?:big|large|long) (?:an? )?{_SENT}"
    rf"|^{_SIZE}.*?(?:{_SENT}.{{0,40}}{_EXCEEDS}|{_EXCEEDS}.{{0,40}}{_SENT}|\bover size limit\b)",
    re.IGNORECASE | re.DOTALL,
)
"""A refusal for the size of a message, as servers and gateways word it."""


def from_status(status: int, message: str, *, code: str = "", request_id: str = "") -> SttError:
    """Classify a refusal before `connected`: an HTTP status, or the status of an `error`."""
    kind: type[SttError] = SttTransientError
    if status in _CREDENTIALS or code in _CREDENTIAL_CODES:
        kind = SttCredentialsError
    elif status == 429 or code == "concurrency_limited":
        kind = SttBusyError
    elif status in _PERMANENT:
        kind = SttPermanentError
    return kind(message, status=status, code=code, request_id=request_id)


def from_close(close_code: int, reason: str, *, request_id: str = "") -> SttError:
    """Classify a close that we did not ask for."""
    kind: type[SttError] = SttTransientError
    if close_code == _TOO_BIG_CLOSE or _TOO_BIG.search(reason):
        kind = SttTooBigError
    elif close_code in _PERMANENT_CLOSES:
        kind = SttPermanentError
    said = f": {reason}" if reason else ""
    return kind(
        f"the service closed the socket with {close_code}{said}",
        status=close_code,
        request_id=request_id,
    )


def is_too_big(status: int, message: str) -> bool:
    """Return whether an in-band error says that a message was too large."""
    return status == 413 or (400 <= status < 500 and _TOO_BIG.search(message) is not None)


def is_idle_close(close_code: int, reason: str) -> bool:
    """Tell the service's idle close (no audio for minutes) from a failure."""
    return close_code == 1001 and "idle" in reason.lower()


def is_provider_error(error: SttError) -> bool:
    """Tell a fault that the service owned up to from a connection that was cut on the way."""
    return 500 <= error.status < 600 or error.status == 1011


_RNG = random.Random()  # noqa: S311 - spreads load, guards nothing


class Backoff:
    """Full-jitter exponential backoff: each wait is uniform below a doubling ceiling."""

    def __init__(
        self, first_s: float = 0.1, ceiling_s: float = 5.0, rng: random.Random | None = None
    ) -> None:
        self._first_s = first_s
        self._ceiling_s = ceiling_s
        self._rng = rng or _RNG
        self.failures = 0

    def next_s(self) -> float:
        """Count a failure and return the seconds to wait."""
        doublings = min(self.failures, math.ceil(math.log2(self._ceiling_s / self._first_s)))
        self.failures += 1
        return self._rng.uniform(0, min(self._ceiling_s, self._first_s * 2.0**doublings))

    def reset(self) -> None:
        """Progress was made: begin again at the first wait."""
        self.failures = 0
