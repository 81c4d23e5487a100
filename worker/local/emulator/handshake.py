"""The HTTP upgrade: path, API version, credentials; no I/O.

Where the provider's documentation leaves a choice, this server behaves as follows:

- If a request has several credentials, X-API-Key precedes Authorization and access_token.
- Any well-formed date is a valid version.
- Credentials are checked at the upgrade only.
"""

import hmac
import re
from datetime import date
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from websockets.datastructures import Headers

from worker.local.emulator.messages import Problem

PATH: Final = "/stt/turns/websocket"

_JSON_ERRORS_SINCE: Final = date(2026, 3, 1)
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class _ErrorBody(msgspec.Struct):
    error_code: str | None
    title: str
    message: str
    request_id: str


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
        credential = self._credential()
        if not credential or not _accepted(credential, api_keys):
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
        body = _ErrorBody(problem.error_code, problem.title, problem.message, request_id)
        return "application/json", msgspec.json.encode(body).decode()

    def _credential(self) -> str:
        key = self._header("X-API-Key")
        scheme, _, token = self._header("Authorization").partition(" ")
        if scheme.lower() != "bearer":
            token = ""
        return key or token.strip() or dict(self.query).get("access_token", "")

    def _header(self, name: str) -> str:
        values = self._headers.get_all(name)
        return values[0].strip() if values else ""


def _accepted(credential: str, api_keys: frozenset[str] | None) -> bool:
    if api_keys is None:
        return True
    given = credential.encode(errors="surrogateescape")  # as websockets decodes a header
    return any(hmac.compare_digest(given, key.encode()) for key in api_keys)
