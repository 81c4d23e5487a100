"""Parsing of command arguments, with the errors of Redis."""

from collections.abc import Iterator

from tests.simulation.redis.nodes import MAX_ID, SEQUENCE_MASK, StreamId, make_id
from tests.simulation.redis.resp import CommandError

NOT_AN_INTEGER = "ERR value is not an integer or out of range"
SYNTAX_ERROR = "ERR syntax error"
INVALID_ID = "ERR Invalid stream ID specified as stream command argument"

_MAX_INTEGER = 1 << 63


def integer(text: bytes, error: str = NOT_AN_INTEGER) -> int:
    """Return a 64-bit integer in its canonical form. Raises `CommandError`."""
    try:
        value = int(text)
    except ValueError:
        raise CommandError(error) from None
    if b"%d" % value != text or not -_MAX_INTEGER <= value < _MAX_INTEGER:
        raise CommandError(error)
    return value


def stream_id(text: bytes, missing_sequence: int = 0) -> StreamId:
    """Return an id; without a sequence number, that number is `missing_sequence`."""
    milliseconds, dash, sequence = text.partition(b"-")
    if not milliseconds.isdigit() or (dash and not sequence.isdigit()):
        raise CommandError(INVALID_ID)
    parts = int(milliseconds), int(sequence) if dash else missing_sequence
    if max(parts) > SEQUENCE_MASK:
        raise CommandError(INVALID_ID)
    return make_id(*parts)


def range_start(text: bytes) -> StreamId:
    """Return the first id of an interval; `(` excludes it."""
    if text[:1] != b"(":
        return 0 if text == b"-" else MAX_ID if text == b"+" else stream_id(text)
    found = stream_id(text[1:])
    if found == MAX_ID:
        raise CommandError("ERR invalid start ID for the interval")
    return found + 1


def range_end(text: bytes) -> StreamId:
    """Return the last id of an interval; `(` excludes it."""
    if text[:1] != b"(":
        if text in {b"-", b"+"}:
            return 0 if text == b"-" else MAX_ID
        return stream_id(text, SEQUENCE_MASK)
    found = stream_id(text[1:], SEQUENCE_MASK)
    if not found:
        raise CommandError("ERR invalid end ID for the interval")
    return found - 1


class Options:
    """The options of a command, read one after the other."""

    def __init__(self, args: list[bytes], at: int) -> None:
        self._args = args
        self.at = at

    def __iter__(self) -> Iterator[bytes]:
        """Yield the name of each option in upper case. Its values are taken with `value`."""
        while self.at < len(self._args):
            name = self._args[self.at].upper()
            self.at += 1
            yield name

    def value(self) -> bytes:
        """Return the next value of the current option."""
        if self.at >= len(self._args):
            raise CommandError(SYNTAX_ERROR)
        value = self._args[self.at]
        self.at += 1
        return value

    def integer(self, error: str = NOT_AN_INTEGER) -> int:
        """Return the next value of the current option as an integer."""
        return integer(self.value(), error)
