"""Deduplication of warnings and errors: the first is logged, then a count of the repeats.

Otherwise an error in a loop would fill a disk with one line, or with one traceback. Two records are
equal if their text and, for an exception, its type and the line that raised it are equal.
"""

import logging
import sys
import time
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Final, TextIO

SUM_UP_S: Final = 60.0
"""Interval between summaries of a repeated record."""

MAX_KNOWN: Final = 1_000
"""Maximum number of different records that are remembered."""


@dataclass
class _Known:
    """A record that was logged, and the number of its repeats since."""

    record: logging.LogRecord
    since: float
    repeats: int = 0


class RepeatHandler(logging.StreamHandler[TextIO]):
    """Writes records to a stream; repeats are summed up once in `SUM_UP_S`."""

    def __init__(self, stream: TextIO = sys.stderr, sum_up_s: float = SUM_UP_S) -> None:
        super().__init__(stream)
        self._sum_up_s = sum_up_s
        self._known: dict[Hashable, _Known] = {}  # in the order of their last write

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record unless it repeats a recent one; also write due summaries."""
        now = time.monotonic()
        self._sum_up(now - self._sum_up_s)
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

    def _sum_up(self, before: float) -> None:
        now = before + self._sum_up_s
        for key, known in [*takewhile(lambda item: item[1].since <= before, self._known.items())]:
            repeats = known.repeats
            self._forget(key, now)
            if repeats:  # it may continue: treat the next one as a repeat
                self._known[key] = _Known(known.record, now)

    def _forget(self, key: Hashable, now: float) -> None:
        known = self._known.pop(key)
        if known.repeats:
            super().emit(_summary(known, now))


def _key(record: logging.LogRecord) -> Hashable:
    raised: tuple[str, str, int] | None = None
    if record.exc_info and record.exc_info[0] is not None:
        raised = (record.exc_info[0].__qualname__, *_place(record.exc_info[2]))
    return record.name, record.levelno, record.getMessage(), raised


def _place(trace: TracebackType | None) -> tuple[str, int]:
    """Return the file and line that raised the exception."""
    if trace is None:
        return "", 0
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno


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
