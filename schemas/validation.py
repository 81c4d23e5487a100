"""Validation errors of entries, worded for producers."""

import re
from typing import Literal, get_args

import msgspec
from msgspec import inspect

Reason = Literal["malformed", "missing", "encoding", "empty", "too_large"]
"""Why an entry was rejected. `malformed`: a field has an invalid value; `missing`: a
required field is absent; `encoding`: no such audio encoding; `empty`: an audio entry without
`audio`, `config` and `end`; `too_large`: over the documented size."""

REASONS: tuple[Reason, ...] = get_args(Reason)

_AT_FIELD = re.compile(r" - at `\$\.(\w+)")
_MISSING = re.compile(r"Object missing required field `(\w+)`$")


class EntryError(ValueError):
    """An entry that cannot be used.

    `field` is the invalid field ("" for the whole entry), `message` a sentence about it that never
    contains the value, `reason` the machine-readable class.
    """

    def __init__(self, field: str, message: str, reason: Reason = "malformed") -> None:
        super().__init__(f"field `{field}`: {message}" if field else message)
        self.field = field
        self.message = message
        self.reason = reason


def from_validation_error(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> EntryError:
    """Convert a msgspec error about a `kind` to an `EntryError` that names the field.

    msgspec's own text is for programmers, names one bound of two, and may contain the value.
    """
    text = str(error)
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    found = _AT_FIELD.search(text) or _MISSING.match(text)
    if found is None or found[1] not in types:
        return EntryError("", "does not hold what it should")
    name, must = found[1], f"must be {describe_type(types[found[1]])}"
    if found.re is _MISSING:
        return EntryError(name, f"is missing; it {must}", "missing")
    return EntryError(name, must)


def from_json_error(field: str, error: msgspec.DecodeError) -> EntryError:
    """Return an error for a field with invalid JSON."""
    text = str(error).removeprefix("JSON is malformed: ").partition(" - at `")[0]
    return EntryError(field, f"is not JSON: {text[:1].lower()}{text[1:]}")


def describe_type(kind: object) -> str:
    """Describe the valid values of a type, as a phrase after "must be".

    The `description` of a number is its unit; the `description` of a text is its valid content.
    """
    info = inspect.type_info(kind)
    if isinstance(info, inspect.UnionType):  # optional: None cannot be written, only left out
        info = info.types[0]
    about = ""
    if isinstance(info, inspect.Metadata):
        about = (info.extra_json_schema or {}).get("description", "")
        info = info.type
    unit = f" {about}" if about else ""
    match info:
        case inspect.EnumType(cls=members):
            return f"one of {', '.join(str(member.value) for member in members)}"
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"a whole number{_span(info)}{unit}"
        case inspect.FloatType():
            return f"a number{_span(info)}{unit}"
        case inspect.VarTupleType(item_type=inspect.LiteralType(values=values)):
            return f"a list of {', '.join(map(str, values))}"
        case inspect.VarTupleType(max_length=most):
            return f"a JSON array of at most {most} texts"
        case inspect.DictType():
            return "a JSON object"
        case inspect.StrType(min_length=least, max_length=most) if not about and most:
            return f"text of {f'{least} to' if least else 'at most'} {most} characters"
        case _:
            return about or "text"


def _span(number: inspect.IntType | inspect.FloatType) -> str:
    if number.gt is not None:
        return f" above {number.gt:.15g}"
    if number.ge is None:
        return ""
    if number.le is None:
        return f" of at least {number.ge:.15g}"
    return f" from {number.ge:.15g} to {number.le:.15g}"
