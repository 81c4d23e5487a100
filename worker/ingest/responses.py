"""HTTP responses as bytes. Each one closes its connection."""

import email.utils
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from websockets.datastructures import Headers
from websockets.http11 import Response

TEXT: Final = "text/plain; charset=utf-8"
"""Content type of a line for a person."""

HeaderLines = Iterable[tuple[str, str]]


def response_head(status: int, content_type: str, headers: HeaderLines = ()) -> Headers:
    """Return the headers of a response; a given header replaces a default of the same name."""
    defaults = {
        "Date": email.utils.formatdate(usegmt=True),
        "Connection": "close",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    if status != HTTPStatus.NO_CONTENT:
        defaults["Content-Type"] = content_type
    given = Headers(list(headers))
    return Headers([*((k, v) for k, v in defaults.items() if k not in given), *given.raw_items()])


def whole_response(status: int, body: bytes, content_type: str, headers: HeaderLines = ()) -> bytes:
    """Return a complete response."""
    head = response_head(status, content_type, headers)
    if status == HTTPStatus.NO_CONTENT:
        body = b""
    else:
        head["Content-Length"] = str(len(body))
    return Response(status, HTTPStatus(status).phrase, head, body).serialize()


def stream_response(content_type: str, headers: HeaderLines = ()) -> bytes:
    """Return the head of a response whose body ends with the connection."""
    head = response_head(HTTPStatus.OK, content_type, headers)
    return Response(HTTPStatus.OK, HTTPStatus.OK.phrase, head).serialize()


def plain_response(status: int, line: str, headers: HeaderLines = ()) -> bytes:
    """Return a response with one line of text."""
    return whole_response(status, f"{line}\n".encode(), TEXT, headers)
