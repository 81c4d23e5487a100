"""Records: the JSON that workers keep on the bus, and that anybody may have written over."""

from typing import TypeVar

import msgspec

T = TypeVar("T")


def decode_record(raw: bytes, kind: type[T]) -> T:
    """Read a record.

    Raises `msgspec.DecodeError` on whatever is none of this kind; msgspec by itself raises other
    errors for what is not UTF-8, or nests too deeply.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
