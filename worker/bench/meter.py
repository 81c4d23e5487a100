"""Measures CPU and memory of processes with psutil."""

import time
from collections.abc import Mapping
from typing import Final

import msgspec
import psutil


class Sample(msgspec.Struct, frozen=True):
    """One reading."""

    at: float
    """Time in seconds of the monotonic clock."""
    at_ms: int
    """Time in Unix milliseconds, as in Redis entry ids."""
    cpu_s: dict[str, float]
    """CPU seconds (user and system) of each process so far."""
    rss: dict[str, int]
    """Resident bytes of each process."""
    machine_busy_s: float
    """CPU seconds in which the machine was not idle, over all cores."""


class Meter:
    """Measures the given processes. Raises `psutil.NoSuchProcess` if one has ended.

    Linux counts CPU time in ticks of 10 ms, so readings should be seconds apart.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes: Final = {name: psutil.Process(pid) for name, pid in pids.items()}

    def read(self) -> Sample:
        """Measure all processes."""
        cpu_s: dict[str, float] = {}
        rss: dict[str, int] = {}
        for name, process in self._processes.items():
            with process.oneshot():
                times = process.cpu_times()
                cpu_s[name] = times.user + times.system
                rss[name] = process.memory_info().rss
        machine = psutil.cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        # User time includes guest time.
        guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)
        busy = sum(machine) - guests - idle
        return Sample(time.monotonic(), time.time_ns() // 1_000_000, cpu_s, rss, busy)
