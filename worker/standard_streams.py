"""Setup of the standard streams, in any state in which the process may start.

A stream may be closed, non-blocking, on a full disk, without a reader, or in an encoding that lacks
most characters.
"""

import codecs
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from worker.errors import OutputFailedError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def set_up() -> None:
    """Open the standard descriptors that are closed, and replace `sys.stdout` and `sys.stderr`.

    Call it once, before any other code opens a file.
    """
    _open_missing()
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - a descriptor, not a path
    sys.stdout = _stream(sys.stdout, 1, must_succeed=True)
    sys.stderr = _stream(sys.stderr, 2, must_succeed=False)


def escape_non_ascii(stream: TextIO) -> None:
    r"""Write JSON to a stream as ASCII with `\uXXXX`, unless the stream is UTF-8.

    JSON readers do not accept other encodings.
    """
    if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
        stream.reconfigure(encoding="ascii", errors=_ESCAPE)


def _open_missing() -> None:
    """Open `/dev/null` as each standard descriptor that is closed.

    Otherwise a file or socket would get its number. libuv aborts when it closes such a socket.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            lowest_free = os.open(os.devnull, os.O_RDWR)  # always this descriptor
            os.set_inheritable(lowest_free, True)  # noqa: FBT003 - positional only


def _stream(replaced: TextIO | None, descriptor: int, *, must_succeed: bool) -> TextIO:
    """Return a text stream like Python's for a descriptor, with different error handling."""
    writer = _Writer(descriptor, must_succeed=must_succeed)
    buffered = io.BufferedWriter(writer)
    if not isinstance(replaced, io.TextIOWrapper):
        return io.TextIOWrapper(buffered, errors=_ESCAPE, line_buffering=not must_succeed)
    return io.TextIOWrapper(
        buffered,
        encoding=replaced.encoding,
        errors=_ESCAPE,
        # PYTHONUNBUFFERED disables the buffer, and so loses the rest of a partial write.
        line_buffering=replaced.line_buffering or replaced.write_through,
    )


class _Writer(io.FileIO):
    """Writes to a standard descriptor. Waits for a full pipe, blocking or not. Fails once."""

    def __init__(self, descriptor: int, *, must_succeed: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._must_succeed = must_succeed
        self._failed = False

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write some bytes and return how many.

        Raises `OutputFailedError` the first time. Later data is dropped, because Python writes its
        buffers again at exit. Errors of standard error cannot be reported.
        """
        while not self._failed:
            try:
                written = super().write(data)
            except OSError as error:
                self._failed = True
                if self._must_succeed:
                    raise OutputFailedError(error) from None
            else:
                if written is not None:
                    return written
                select.select([], [self], [])
        return memoryview(data).nbytes


_ESCAPE = "turnbus.escape"


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Escape characters that an encoding lacks as in JSON, `\u20ac`: JSON text stays valid."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end


codecs.register_error(_ESCAPE, _escape)
