"""Logging to stderr, as text or JSON, without repeats.

A log call about a session has a `SessionName` among its arguments. A JSON line then has separate
fields for the session and its trace. Secrets and transcripts are never arguments of a log call.
"""

import logging
import re
import sys
import time
import traceback
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Self, TextIO

import msgspec

from worker.settings import Settings
from worker.standard_streams import escape_non_ascii
from worker.text import printable

SUM_UP_S: Final = 60.0
"""Interval between summaries of a repeated record."""

MAX_KNOWN: Final = 1_000
"""Maximum number of different records that are remembered."""

_TRACE_ID = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-")


def set_up(settings: Settings) -> None:
    """Log to stderr in the configured format; repeated warnings and errors are counted."""
    handler = DeduplicatingHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
        escape_non_ascii(sys.stderr)
    else:
        handler.setFormatter(TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    # The library logs handshake headers, which include the key, at debug level, and every health
    # check at info level.
    logging.getLogger("websockets").setLevel(logging.WARNING)


class SessionName(str):
    """A session's id, with the trace id of its producer."""

    __slots__ = ("trace_id",)
    trace_id: str
    """Trace id; empty without tracing in the producer."""

    def __new__(cls, session: str, traceparent: str | None) -> Self:
        """Create a name from a session's id and the `traceparent` of its entry."""
        name = super().__new__(cls, session)
        match = _TRACE_ID.match(traceparent or "")
        name.trace_id = match[1] if match else ""
        return name


class JsonFormatter(logging.Formatter):
    """Formats records as JSON, one object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format `time`, `level`, `logger`, `message` and, if known, `session`, `trace_id` etc."""
        whole, ms = divmod(int(record.created * 1000), 1000)
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{ms:03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, SessionName):
                line["session"] = str(argument)
                if argument.trace_id:
                    line["trace_id"] = argument.trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line).decode()
        except UnicodeEncodeError:  # a lone surrogate, for example from a file name
            line = {name: printable(text) for name, text in line.items()}
            return msgspec.json.encode(line).decode()


class TextFormatter(logging.Formatter):
    """Formats records as text; a traceback may follow the line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's
        """Remove line breaks and terminal control sequences from the message."""
        record.message = printable(record.message)
        return super().formatMessage(record)


@dataclass
class _Known:
    """A record that was logged, and the number of its repeats since."""

    record: logging.LogRecord
    since: float
    repeats: int = 0


class DeduplicatingHandler(logging.StreamHandler[TextIO]):
    """Writes a warning or an error to a stream once, then a count of its repeats.

    Otherwise an error in a loop would fill a disk with one line, or with one traceback. Two records
    are equal if their text and, for an exception, its type and the line that raised it are equal.
    """

    def __init__(self, stream: TextIO = sys.stderr, sum_up_s: float = SUM_UP_S) -> None:
        super().__init__(stream)
        self._sum_up_s = sum_up_s
        self._known: dict[Hashable, _Known] = {}  # in the order of their last write

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record unless it repeats a recent one; also write due summaries."""
        now = time.monotonic()
        self._sum_up(now)
        if record.levelno < logging.WARNING:
            super().emit(record)
            return
        key = _key(record)
        if (known := self._known.get(key)) is not None:
            known.repeats += 1
            return
        if len(self._known) >= MAX_KNOWN:
            self._forget(next(iter(self._known)), now)
        self._known[key] = _Known(record, now)
        super().emit(record)

    def close(self) -> None:
        """Write the remaining summaries."""
        self.acquire()
        try:
            for key in [*self._known]:
                self._forget(key, time.monotonic())
        finally:
            self.release()
        super().close()

    def _sum_up(self, now: float) -> None:
        due = takewhile(lambda item: item[1].since <= now - self._sum_up_s, self._known.items())
        for key, known in [*due]:
            self._forget(key, now)
            if known.repeats:  # it may continue: treat the next one as a repeat
                self._known[key] = _Known(known.record, now)

    def _forget(self, key: Hashable, now: float) -> None:
        known = self._known.pop(key)
        if known.repeats:
            super().emit(_summary(known, now))


def _key(record: logging.LogRecord) -> Hashable:
    raised: Hashable = None
    if record.exc_info and record.exc_info[0] is not None:
        frames = traceback.walk_tb(record.exc_info[2])
        places = [(frame.f_code.co_filename, line) for frame, line in frames]
        raised = (record.exc_info[0].__qualname__, *places[-1:])
    return record.name, record.levelno, record.getMessage(), raised


def _summary(known: _Known, now: float) -> logging.LogRecord:
    """Return a record with the number of repeats; it keeps the session of the first."""
    first = known.record
    message = str(first.msg)
    args: tuple[object, ...] = first.args if isinstance(first.args, tuple) else ()
    if not args:
        message = first.getMessage().replace("%", "%%")
    return logging.LogRecord(
        first.name,
        first.levelno,
        first.pathname,
        first.lineno,
        f"{message} (%d more in %.0f s)",
        (*args, known.repeats, now - known.since),
        None,
    )
