"""The HTTP upgrade: path, API version, credentials; pure.

Where the provider's documents are silent, this server chooses: credentials, version, path and the
concurrency cap are answered at the upgrade with an HTTP status, all else in-band after it; of
several credentials the first of X-API-Key, Authorization and access_token counts; any well-formed
date is a version.
"""

import hmac
import re
from datetime import date
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from websockets.datastructures import Headers

PATH: Final = "/stt/turns/websocket"

_JSON_ERRORS_SINCE: Final = date(2026, 3, 1)
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class Refusal(msgspec.Struct, frozen=True):
    """Why there will be no socket."""

    status: HTTPStatus
    title: str
    message: str
    error_code: str | None = None


class _ErrorBody(msgspec.Struct):
    error_code: str | None
    title: str
    message: str
    request_id: str


CONCURRENCY_LIMITED: Final = Refusal(
    HTTPStatus.TOO_MANY_REQUESTS,
    "Concurrency limit reached",
    "Too many connections are open; close one or wait until one ends.",
    "concurrency_limited",
)


class Upgrade:
    """One upgrade request: `target` is the request line's path and query, as sent."""

    def __init__(self, target: str, headers: Headers) -> None:
        self.path, _, query = target.partition("?")
        self.query = tuple(parse_qsl(query, keep_blank_values=True))
        self._headers = headers

    def refusal(self, api_keys: frozenset[str] | None) -> Refusal | None:
        """Tell why it must be refused, None if it need not."""
        if self.path != PATH:
            return Refusal(HTTPStatus.NOT_FOUND, "Not found", f"The endpoint is {PATH}.")
        credential = self._credential()
        if not credential or not _accepted(credential, api_keys):
            return Refusal(
                HTTPStatus.UNAUTHORIZED,
                "Unauthorized",
                "Send a valid key as X-API-Key or Authorization: Bearer, or an access_token.",
            )
        if self.version is None:
            return Refusal(
                HTTPStatus.BAD_REQUEST,
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

    def error_body(self, refusal: Refusal, request_id: str) -> tuple[str, str]:
        """Write a refusal's body: content type and text.

        Versions before 2026-03-01 get plain text; who sent no version is told in JSON.
        """
        if self.version is not None and self.version < _JSON_ERRORS_SINCE:
            return "text/plain; charset=utf-8", f"{refusal.title}: {refusal.message}"
        body = _ErrorBody(refusal.error_code, refusal.title, refusal.message, request_id)
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
