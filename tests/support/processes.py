"""Processes that a test has started or observed."""

import subprocess
import time
from collections.abc import Callable, Sequence

import psutil

from tests.support.polling import PATIENCE_S


def left_of(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Wait for processes to end; return those that still run."""
    deadline = time.monotonic() + PATIENCE_S
    left = [*processes]
    while (left := [*filter(_runs, left)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        # A container whose first process reaps no children still lists the dead ones.
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def until(
    look: Callable[[], object],
    process: "subprocess.Popen[str] | subprocess.Popen[bytes]",
    what: str,
) -> None:
    """Poll until the result is truthy. Fail if `process` ends or the timeout expires."""
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert process.poll() is None, f"it ended before {what}"
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.02)
