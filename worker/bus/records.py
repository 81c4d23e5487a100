"""Records: JSON values that workers store in Redis, and that other programs may overwrite."""

from typing import TypeVar

import msgspec

T = TypeVar("T")


def decode_record(raw: bytes, kind: type[T]) -> T:
    """Decode a record.

    Raises `msgspec.DecodeError` on any invalid input. msgspec itself raises other errors for input
    that is not UTF-8, or that nests too deeply.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
