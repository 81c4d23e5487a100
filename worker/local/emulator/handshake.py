"""The HTTP upgrade: path, API version, credentials; pure.

Where the provider's documents are silent, this server chooses: of several credentials the first of
X-API-Key, Authorization and access_token counts; any well-formed date is a version; credentials
are not looked at again while the connection lasts.
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
        """Tell why it must be refused, None if it need not."""
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
        """The API version asked for, the query's before the header's; None if not a date."""
        text = dict(self.query).get("cartesia_version", self._header("Cartesia-Version"))
        if not _DATE.fullmatch(text):
            return None
        try:
            return date.fromisoformat(text)
        except ValueError:  # such as 2026-02-30
            return None

    def error_body(self, problem: Problem, request_id: str) -> tuple[str, str]:
        """Write a problem's body: content type and text.

        Versions before 2026-03-01 get plain text; who sent no version is told in JSON.
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
