"""Server-sent events: the format of a stream, and the position with which a client resumes.

Pure. The format is that of https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import re
from typing import Final

CONTENT_TYPE: Final = "text/event-stream"

COMMENT: Final = b":\n\n"
"""A comment line. It keeps the response alive, and browsers ignore it."""

MAX_ID_PART: Final = 2**64 - 1
"""Largest number in either part of an entry id."""

_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_LINE_ENDS = re.compile(rb"\r\n|\r|\n")


class BadEventIdError(ValueError):
    """An id that no event can have."""


def encode_message(entry_id: str, kind: bytes, data: bytes) -> bytes:
    """Encode one event. Each line of `data` becomes a line of the message."""
    name = _LINE_ENDS.sub(b" ", kind)
    lines = b"".join(b"data: %b\n" % line for line in _LINE_ENDS.split(data))
    return b"id: %b\nevent: %b\n%b\n" % (entry_id.encode(), name, lines)


def parse_last_event_id(text: str | None) -> str | None:
    """Return the entry id to resume after; None if the client has none.

    Raises `BadEventIdError` if the text is not an entry id.
    """
    if not text:
        return None
    if _ID.fullmatch(text) is None or any(int(part) > MAX_ID_PART for part in text.split("-")):
        raise BadEventIdError("Last-Event-ID must be the id of an event, 1700000000000-0 say")
    return text
