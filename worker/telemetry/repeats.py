"""Warnings and errors that repeat: logged once, and then how often, instead of each time.

A fault in a loop would else fill a disk with one line, or with one traceback. Two records are the
same if their text is, and, of an exception, its type and the line that raised it.
"""

import logging
import sys
import time
from collections.abc import Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, TextIO

SUM_UP_S: Final = 60.0
"""How often it is said that a record repeats."""

MAX_KNOWN: Final = 1_000
"""Different records that are remembered."""


@dataclass
class _Known:
    """A record that was logged, and the same ones since."""

    record: logging.LogRecord
    since: float
    repeats: int = 0


class RepeatHandler(logging.StreamHandler[TextIO]):
    """Writes records to a stream, those that repeat once in `SUM_UP_S` with their number."""

    def __init__(self, stream: TextIO = sys.stderr, sum_up_s: float = SUM_UP_S) -> None:
        super().__init__(stream)
        self._sum_up_s = sum_up_s
        self._known: dict[Hashable, _Known] = {}  # by when they were last written

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless it was written just now; and what is to be summed up."""
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
        """Write what repeated and was not summed up yet; no more comes."""
        self.acquire()
        try:
            for key in [*self._known]:
                self._forget(key, time.monotonic())
        finally:
            self.release()
        super().close()

    def _sum_up(self, before: float) -> None:
        now = before + self._sum_up_s
        for key, known in [*self._known.items()]:
            if known.since > before:
                break
            repeats = known.repeats
            self._forget(key, now)
            if repeats:  # it may go on: the next is a repeat again
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
    """Return file and line of what raised."""
    if trace is None:
        return "", 0
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno


def _summary(known: _Known, now: float) -> logging.LogRecord:
    """Return a record that says how often the known one repeated; it names the same session."""
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
