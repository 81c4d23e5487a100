"""Classifies the provider's errors, and computes the delay before a retry."""

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

_PERMANENT = frozenset({400, 404, 413, 414, 422, 431})  # from 413 on: key terms are too long
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
"""Matches errors about the size of a message, as servers and gateways word them."""


def from_status(status: int, message: str, *, code: str = "", request_id: str = "") -> SttError:
    """Classify a rejected connect: an HTTP status, or the status of an `error` message."""
    kind: type[SttError] = SttTransientError
    if status in _CREDENTIALS or code in _CREDENTIAL_CODES:
        kind = SttCredentialsError
    elif status == 429 or code == "concurrency_limited":
        kind = SttBusyError
    elif status in _PERMANENT:
        kind = SttPermanentError
    return kind(message, status=status, code=code, request_id=request_id)


def from_close(close_code: int, reason: str, *, request_id: str = "") -> SttError:
    """Classify a close that the worker did not request."""
    kind: type[SttError] = SttTransientError
    if close_code == _TOO_BIG_CLOSE or _TOO_BIG.search(reason):
        kind = SttTooBigError
    elif close_code in _PERMANENT_CLOSES:
        kind = SttPermanentError
    detail = f": {reason}" if reason else ""
    return kind(
        f"the provider closed the socket with {close_code}{detail}",
        status=close_code,
        request_id=request_id,
    )


def is_too_big(status: int, message: str) -> bool:
    """Return whether an in-band error means that a message was too large."""
    return status == 413 or (400 <= status < 500 and _TOO_BIG.search(message) is not None)


def is_idle_close(close_code: int, reason: str) -> bool:
    """Return whether a close is the provider's idle timeout (no audio for minutes)."""
    return close_code == 1001 and "idle" in reason.lower()


def is_provider_error(error: SttError) -> bool:
    """Return whether the provider reported an internal error, rather than a cut connection."""
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
        """Go back to the first delay, after progress."""
        self.failures = 0
