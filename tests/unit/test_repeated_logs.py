"""Repeated warnings and errors are logged once, then counted."""

import io
import logging
import time
from collections.abc import Callable

import pytest

from worker.telemetry import logs
from worker.telemetry.logs import DeduplicatingHandler, JsonFormatter, SessionName


class Clock:
    """A clock that a test sets; it replaces the module `time`."""

    gmtime = staticmethod(time.gmtime)
    strftime = staticmethod(time.strftime)

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(logs, "time", clock)
    return clock


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(stream: io.StringIO, clock: Clock) -> logging.Logger:
    made = logging.Logger("worker.test")  # noqa: LOG001 - one of the test's own
    made.addHandler(DeduplicatingHandler(stream, sum_up_s=60.0))
    return made


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_repeats_are_counted_and_summarised(
    log: logging.Logger, stream: io.StringIO, clock: Clock
) -> None:
    for _ in range(500):
        log.warning("%s: lost", SessionName("call-1", None))
        clock.now += 0.1
    log.warning("%s: lost", SessionName("call-2", None))
    assert lines(stream) == ["call-1: lost", "call-2: lost"]
    clock.now = 61.0
    log.info("something else")
    assert lines(stream)[2:] == ["call-1: lost (499 more in 61 s)", "something else"]
    log.warning("%s: lost", SessionName("call-1", None))
    assert len(lines(stream)) == 4
    clock.now = 200.0
    log.info("something else")
    clock.now = 300.0
    log.warning("%s: lost", SessionName("call-1", None))
    assert lines(stream)[4:] == [
        "call-1: lost (1 more in 139 s)",
        "something else",
        "call-1: lost",
    ]


def test_lines_below_warning_are_never_counted(log: logging.Logger, stream: io.StringIO) -> None:
    for _ in range(3):
        log.info("session new")
    assert lines(stream) == ["session new"] * 3


def test_different_line_is_no_repeat(log: logging.Logger, stream: io.StringIO) -> None:
    log.warning("lost %d", 1)
    log.warning("lost %d", 2)
    log.error("lost %d", 2)
    log.warning("lost 1%")
    assert len(lines(stream)) == 4


def _fail(with_text: str) -> None:
    raise ValueError(with_text)


def _fail_elsewhere() -> None:
    raise ValueError("1")


@pytest.mark.parametrize(
    ("another", "written"),
    [(lambda: _fail("2"), 1), (_fail_elsewhere, 2), (lambda: [][0], 2)],
)
def test_traceback_of_one_place_is_written_once(
    log: logging.Logger, stream: io.StringIO, another: Callable[[], object], written: int
) -> None:
    for failing in (lambda: _fail("1"), another, another):
        try:
            failing()
        except (ValueError, IndexError):
            log.exception("acquirer: an error")
    assert stream.getvalue().count("Traceback") == written


def test_counts_are_written_at_the_end(
    log: logging.Logger, stream: io.StringIO, clock: Clock
) -> None:
    log.warning("100% lost")
    log.warning("100% lost")
    clock.now = 3.0
    log.handlers[0].close()
    assert lines(stream) == ["100% lost", "100% lost (1 more in 3 s)"]


def test_summary_names_the_session_in_json(
    log: logging.Logger, stream: io.StringIO, clock: Clock
) -> None:
    log.handlers[0].setFormatter(JsonFormatter())
    for _ in range(2):
        log.warning("%s: lost", SessionName("call-1", None))
    log.handlers[0].close()
    assert '"session":"call-1"' in lines(stream)[1]


def test_memory_is_bounded(
    log: logging.Logger, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_KNOWN", 2)
    for number in (1, 1, 2, 3, 1):
        log.warning("lost %d", number)
    assert lines(stream) == [
        "lost 1",
        "lost 2",
        "lost 1 (1 more in 0 s)",
        "lost 3",
        "lost 1",
    ]
