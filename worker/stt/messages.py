"""Reads the provider's messages, also those that are damaged: what can be read of them is used.

A message that is not quite JSON, or whose fields have other types than they should, costs what it
does not say. So a `turn.end` with half a surrogate pair in its transcript still ends its turn.
"""

import json
import re
from typing import NamedTuple

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
"""Maximum status code; above it, and below 0, is none."""


class Reading(NamedTuple):
    """What was read of one message."""

    message: ServerMessage | None
    """None if its type cannot be read."""
    defect: str = ""
    """What is wrong with it, without any of its content; empty if nothing is."""


def read_message(text: str) -> Reading:
    """Read one message of the provider. Never raises."""
    try:
        message = decode_message(text)
        if not isinstance(message, Error) or message.status_code == _status(message.status_code):
            return Reading(message)
        defect = "status code out of range"
    except msgspec.ValidationError:
        defect = "unexpected types"
    except msgspec.DecodeError:
        defect = "invalid JSON"
    except RecursionError:
        defect = "nested too deeply"
    except ValueError:  # msgspec lets some of Python's own errors through
        defect = "invalid value"
    if not text:
        return Reading(None, "empty message")
    fields = _fields(text)
    kind = fields.get("type")
    if not isinstance(kind, str):
        return Reading(None, f"{defect}, no readable type")
    known = KNOWN.get(kind)
    return Reading(UnknownMessage(kind) if known is None else _message(known, fields), defect)


def _message(kind: type[KnownMessage], fields: dict[str, object]) -> KnownMessage:
    """Make a message of the fields that have the types they should have."""
    readable: dict[str, object] = {
        name: value
        for name in kind.__struct_fields__
        if name != "status_code" and isinstance(value := fields.get(name), str)
    }
    if kind is Error:
        readable["status_code"] = _status(fields.get("status_code"))
    return msgspec.convert(readable | {"type": kind.__struct_config__.tag}, kind)


def _status(value: object) -> int | None:
    """Return a status code, also if it is a string or has a decimal point; None if it is none."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,4}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return None
    return int(value) if 0 <= value <= MAX_STATUS else None


_JSON = json.JSONDecoder(strict=False)
"""Takes what the standard forbids and programs write: NaN, line breaks, half surrogate pairs."""

_BETWEEN = re.compile(r"[\s,]*")
_KEY = re.compile(r'"([^"\\]*)"\s*:\s*')
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{},]', re.DOTALL)


def _fields(text: str) -> dict[str, object]:
    """Return the fields of an object that can be read, however damaged the rest is."""
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
    """Return where a value ends that cannot be read, judging by its brackets and strings."""
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
    """Replace halves of surrogate pairs, which no encoding of the bus can carry."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
