"""Parsing of values from the environment, TOML files and the command line."""

import math
from enum import Enum
from typing import Literal, get_args, get_origin

import msgspec
from msgspec import inspect

_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def from_text(text: str, kind: object) -> object:
    """Parse a text as a value of an annotated type.

    Surrounding white space is ignored. Names and booleans are case-insensitive. A whole number may
    be written `5000`, `5_000`, `5e3` or `5000.0`. Raises ValueError for anything else.
    """
    text = text.strip()
    value: object = text
    match _plain(kind):
        case inspect.BoolType():
            value = _BOOLEANS.get(text.lower())
        case inspect.IntType() | inspect.FloatType():
            value = _number(text)
        case inspect.LiteralType() | inspect.EnumType():
            value = text.lower()
    return _checked(value, kind)


def from_toml(value: object, kind: object) -> object:
    """Convert a TOML value to an annotated type. Raises ValueError.

    TOML has numbers, so a number in quotes is invalid.
    """
    number = isinstance(_plain(kind), inspect.IntType | inspect.FloatType)
    if isinstance(value, str) and not number:
        return from_text(value, kind)
    return _checked(value, kind)


def _checked(value: object, kind: object) -> object:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("not a finite number")
        if value.is_integer() and isinstance(_plain(kind), inspect.IntType):
            value = int(value)
    try:
        converted: object = msgspec.convert(value, kind)
    except OverflowError:
        raise ValueError("too large a number") from None
    return converted


def choices(kind: object) -> list[object] | None:
    """Return the values, as declared, of a type that names them all; None for other types."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return list(kind)
    return next(filter(None, map(choices, get_args(kind))), None)


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _plain(kind: object) -> inspect.Type:
    """Return a type without its bounds and without None."""
    info = inspect.type_info(kind)
    if isinstance(info, inspect.UnionType):
        info = info.types[0]
    return info.type if isinstance(info, inspect.Metadata) else info
