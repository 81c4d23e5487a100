"""What is wrong with an entry, said so that its producer can mend it."""

from typing import Literal, get_args

import msgspec

Reason = Literal["malformed", "missing", "encoding", "empty", "too_large"]
"""Why an entry was refused. `malformed`: a field does not hold what it should; `missing`: a
required field is absent; `encoding`: no such audio encoding; `empty`: an audio entry without
`audio`, `config` and `end`; `too_large`: over the documented size."""

REASONS: tuple[Reason, ...] = get_args(Reason)


class EntryFault(ValueError):  # noqa: N818 - reads as what it is
    """An entry that cannot be used.

    `field` is the guilty field ("" when the entry as a whole is at fault), `fault` a sentence
    about it that never repeats the value, `reason` the machine-readable class.
    """

    def __init__(self, field: str, fault: str, reason: Reason = "malformed") -> None:
        super().__init__(f"field `{field}`: {fault}" if field else fault)
        self.field = field
        self.fault = fault
        self.reason = reason


def entry_fault(error: msgspec.ValidationError, reason: Reason = "malformed") -> EntryFault:
    """Turn msgspec's "what - at `$.path`" into a fault that names the field."""
    what, at, path = str(error).partition(" - at `$")
    if what.startswith("Invalid enum value"):
        what = "is not one of the values documented"  # msgspec would repeat what was written
    if at:
        field = path.rstrip("`").lstrip(".")
        return EntryFault(field, what, reason)
    if what.startswith("Object missing required field `"):
        field = what.split("`")[1]
        return EntryFault(field, "is required", "missing")
    return EntryFault("", what, reason)
