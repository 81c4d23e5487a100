"""Helpers of all parsers: JSON of a producer as typed values, and marks within their limits."""

from typing import Any, TypeVar

import msgspec

from schemas.audio import decode_audio
from schemas.validation import EntryError
from worker.ingest.records import Marked, ProtocolError
from worker.text import printable

T = TypeVar("T")

MAX_REASON_CHARS = 200


def decode_json(decoder: msgspec.json.Decoder[T], message: str, name: str) -> T:
    """Decode a message called `name` in errors. Raises `ProtocolError` without its content."""
    try:
        return decoder.decode(message)
    except msgspec.MsgspecError as error:
        # The text may contain a field name of the producer's.
        reason = printable(" ".join(str(error).split()))[:MAX_REASON_CHARS]
        raise ProtocolError(f"{name} is not valid: {reason}") from None
    except (RecursionError, UnicodeEncodeError):
        raise ProtocolError(f"{name} nests too deep or is not UTF-8") from None


def marked(mark: dict[str, Any], track: int = 0) -> Marked:
    """Return a mark that is valid in an audio entry. Raises `ProtocolError`."""
    try:
        decode_audio({b"mark": msgspec.json.encode(mark)})
    except EntryError as error:
        raise ProtocolError(str(error)) from None
    except (RecursionError, UnicodeEncodeError):
        raise ProtocolError("field `mark`: nests too deep or is not UTF-8") from None
    return Marked(mark, track)


def dtmf(digit: str, track: int = 0) -> Marked:
    """Return the mark of a pressed key."""
    return marked({"dtmf": digit}, track)
