"""Logs: a line for each thing that happened, for people or as JSON.

A line names the session it is about by a `SessionName` among its arguments: so it reads well, and
as JSON it has the session and its trace in fields of their own. Secrets and transcripts are never
arguments of a log call.
"""

import logging
import re
import sys
import time
from typing import Self

import msgspec

from worker.printable import printable
from worker.settings import Settings
from worker.standard_streams import escape_non_ascii
from worker.telemetry.repeats import RepeatHandler

_TRACE_ID = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-")


class SessionName(str):
    """A session's id, and with it the trace that its producer began."""

    __slots__ = ("trace_id",)
    trace_id: str
    """Empty if the producer traces nothing."""

    def __new__(cls, session: str, traceparent: str | None) -> Self:
        """Name a session by its id and the `traceparent` of its entry."""
        name = super().__new__(cls, session)
        match = _TRACE_ID.match(traceparent or "")
        name.trace_id = match[1] if match else ""
        return name


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record: `time`, `level`, `logger`, `message`; where known, `session` etc."""
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
    """A line to read; a traceback may follow it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's
        """Keep what others said on one line, and off the terminal's controls."""
        record.message = printable(record.message)
        return super().formatMessage(record)


def _json(line: dict[str, str]) -> str:
    try:
        return msgspec.json.encode(line).decode()
    except UnicodeEncodeError:  # half of a surrogate pair: of a file's name, say
        return msgspec.json.encode({name: printable(text) for name, text in line.items()}).decode()


def set_up(settings: Settings) -> None:
    """Log to stderr as the settings say; a warning or an error that repeats is counted."""
    handler = RepeatHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
        escape_non_ascii(sys.stderr)
    else:
        handler.setFormatter(TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    # The library logs handshake headers at debug level, and the key is one of them; at info level
    # every health check.
    logging.getLogger("websockets").setLevel(logging.WARNING)
