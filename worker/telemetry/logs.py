"""Logging to stderr, as text or JSON.

A log call about a session has a `SessionName` among its arguments. A JSON line then has separate
fields for the session and its trace. Secrets and transcripts are never arguments of a log call.
"""

import logging
import re
import sys
import time
from typing import Self

import msgspec

from worker.settings import Settings
from worker.standard_streams import escape_non_ascii
from worker.telemetry.repeats import RepeatHandler
from worker.text import printable

_TRACE_ID = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-")


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
        return _json(line)


class TextFormatter(logging.Formatter):
    """Formats records as text; a traceback may follow the line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's
        """Remove line breaks and terminal control sequences from the message."""
        record.message = printable(record.message)
        return super().formatMessage(record)


def _json(line: dict[str, str]) -> str:
    try:
        return msgspec.json.encode(line).decode()
    except UnicodeEncodeError:  # a lone surrogate, for example from a file name
        return msgspec.json.encode({name: printable(text) for name, text in line.items()}).decode()


def set_up(settings: Settings) -> None:
    """Log to stderr in the configured format; repeated warnings and errors are counted."""
    handler = RepeatHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
        escape_non_ascii(sys.stderr)
    else:
        handler.setFormatter(TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    # The library logs handshake headers, which include the key, at debug level, and every health
    # check at info level.
    logging.getLogger("websockets").setLevel(logging.WARNING)
