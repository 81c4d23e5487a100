"""Processes that a test has seen, and whether they are gone."""

import time
from collections.abc import Sequence

import psutil

from tests.waiting import PATIENCE_S


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
