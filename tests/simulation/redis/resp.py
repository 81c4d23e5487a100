"""Replies, and their bytes in RESP2."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from hiredis import ProtocolError, Reader


class Status:
    """A status reply, such as `+OK`."""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Status) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Status({self.text!r})"


class CommandError(Exception):
    """An error reply. Its text begins with the code: `WRONGTYPE ...`."""

    @property
    def text(self) -> str:
        """The text that a client receives."""
        return str(self)


class NilArray:
    """The null array, which RESP2 distinguishes from the null string."""


OK = Status(b"OK")
Reply: TypeAlias = int | bytes | Status | CommandError | NilArray | Sequence["Reply"] | None


def encode(reply: Reply) -> bytes:
    """Return the bytes of a reply."""
    if type(reply) is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if type(reply) is int:
        return b":%d\r\n" % reply
    parts: list[bytes] = []
    _append(parts, reply)
    return b"".join(parts)


def _append(parts: list[bytes], reply: Reply) -> None:
    if isinstance(reply, bytes):
        parts.append(b"$%d\r\n%b\r\n" % (len(reply), reply))
    elif isinstance(reply, int):
        parts.append(b":%d\r\n" % reply)
    elif reply is None:
        parts.append(b"$-1\r\n")
    elif isinstance(reply, Status):
        parts.append(b"+%b\r\n" % reply.text)
    elif isinstance(reply, CommandError):
        parts.append(b"-%b\r\n" % reply.text.encode())
    elif isinstance(reply, NilArray):
        parts.append(b"*-1\r\n")
    else:
        parts.append(b"*%d\r\n" % len(reply))
        for each in reply:
            _append(parts, each)


def text_of(name: bytes) -> str:
    """Return a name as an error text has it."""
    return name.decode("utf-8", "replace")


class CommandParser:
    """Parses the commands of one connection. Inline commands are not known."""

    def __init__(self) -> None:
        self._reader = Reader()

    def feed(self, data: bytes) -> list[list[bytes]]:
        """Return the commands that are complete. Raises `CommandError` if this is not RESP."""
        commands = []
        self._reader.feed(data)
        try:
            while (command := self._reader.gets()) is not False:
                commands.append(_checked(command))
        except ProtocolError as error:
            raise CommandError(f"ERR Protocol error: {error}") from error
        return commands


def _checked(command: Any) -> list[bytes]:
    if not isinstance(command, list) or not all(isinstance(part, bytes) for part in command):
        raise CommandError("ERR Protocol error: expected an array of strings")
    return command
