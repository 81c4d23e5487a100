"""Processes that a test has started, or seen to be."""

import subprocess
import time
from collections.abc import Callable, Sequence

import psutil

from tests.support.polling import PATIENCE_S


def left_of(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Give processes that are to end the time for it; return those that run all the same."""
    deadline = time.monotonic() + PATIENCE_S
    left = [*processes]
    while (left := [*filter(_runs, left)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        # Where the first process of a container reaps nobody, the dead are still listed.
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def until(
    look: Callable[[], object],
    process: "subprocess.Popen[str] | subprocess.Popen[bytes]",
    what: str,
) -> None:
    """Look again and again until there is something, as long as `process` runs. Fails if not."""
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert process.poll() is None, f"it ended before {what}"
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.02)
