"""Lenient parsing of the provider's messages: the readable fields of a damaged message are used.

A message may be invalid JSON, or its fields may have unexpected types. A `turn.end` with half a
surrogate pair in its transcript still ends its turn.
"""

import json
import re

import msgspec

from schemas.cartesia import (
    KNOWN,
    Error,
    KnownMessage,
    ServerMessage,
    UnknownMessage,
    decode_message,
)

MAX_STATUS = 9_999
"""Maximum status code; other values are ignored."""


def read_message(data: bytes) -> tuple[ServerMessage | None, str]:
    """Return the readable content of a message, and its defect. Never raises if `data` is UTF-8.

    The message is None if its type is not readable. The defect describes what is wrong, without any
    content; it is empty if the message has none.
    """
    try:
        message = decode_message(data)
        if not isinstance(message, Error) or message.status_code == _status(message.status_code):
            return message, ""
        defect = "status code out of range"
    except (RecursionError, ValueError) as error:
        defect = defect_of(error)
    kind, fields, defect = read_damaged(data, defect)
    if kind is None:
        return None, defect
    known = KNOWN.get(kind)
    return UnknownMessage(kind) if known is None else _message(known, fields), defect


def _message(kind: type[KnownMessage], fields: dict[str, object]) -> KnownMessage:
    """Return a message of the fields that have the expected types."""
    readable: dict[str, object] = {
        name: value
        for name in kind.__struct_fields__
        if name != "status_code" and isinstance(value := fields.get(name), str)
    }
    if kind is Error:
        readable["status_code"] = _status(fields.get("status_code"))
    return msgspec.convert(readable | {"type": kind.__struct_config__.tag}, kind)


def _status(value: object) -> int | None:
    """Return a status code, also from a string or a float; None if the value is not one."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,4}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return None
    return int(value) if 0 <= value <= MAX_STATUS else None


_JSON = json.JSONDecoder(strict=False)
"""Decoder that accepts common violations of the standard: NaN, line breaks, lone surrogates."""

_BETWEEN = re.compile(r"[\s,]*")
_KEY = re.compile(r'"([^"\\]*)"\s*:\s*')
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{},]', re.DOTALL)


def defect_of(error: RecursionError | ValueError) -> str:
    """Describe why msgspec could not decode a message, without any of its content."""
    if isinstance(error, msgspec.ValidationError):
        return "unexpected types"
    if isinstance(error, msgspec.DecodeError):
        return "invalid JSON"
    # msgspec lets some of Python's own errors through.
    return "nested too deeply" if isinstance(error, RecursionError) else "invalid value"


def read_damaged(data: bytes, defect: str) -> tuple[str | None, dict[str, object], str]:
    """Return the type and the readable fields of a message that msgspec cannot decode.

    The type is None if it is not readable; the defect then says so.
    """
    if not data:
        return None, {}, "empty message"
    fields = _readable_fields(data.decode())
    kind = fields.get("type")
    if not isinstance(kind, str):
        return None, {}, f"{defect}, no readable type"
    return kind, fields, defect


def _readable_fields(text: str) -> dict[str, object]:
    """Return the readable fields of an object, however damaged the rest is."""
    fields: dict[str, object] = {}
    begin = re.match(r"[\s\ufeff]*\{", text)
    at = begin.end() if begin else len(text)
    while key := _KEY.match(text, _BETWEEN.match(text, at).end()):  # type: ignore[union-attr]
        try:
            value, at = _JSON.raw_decode(text, key.end())
        except (ValueError, RecursionError):
            at = _end_of_value(text, key.end())
        else:
            fields[key[1]] = _without_lone_surrogates(value) if isinstance(value, str) else value
    return fields


def _end_of_value(text: str, at: int) -> int:
    """Return the end of an unreadable value, found by its brackets and strings."""
    depth = 0
    for token in _TOKEN.finditer(text, at):
        match token[0]:
            case "[" | "{":
                depth += 1
            case "]" | "}" | "," if depth == 0:
                return token.start()
            case "]" | "}":
                depth -= 1
    return len(text)


def _without_lone_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
