"""The meter: CPU and memory of processes, by psutil."""

import time
from collections.abc import Mapping
from typing import Final

import msgspec
import psutil


class Sample(msgspec.Struct, frozen=True):
    """One reading."""

    at: float
    """Seconds, on the monotonic clock."""
    at_ms: int
    """Unix milliseconds: what Redis puts into the ids of entries."""
    cpu_s: dict[str, float]
    """CPU seconds, user and system, of each process so far."""
    rss: dict[str, int]
    """Resident bytes of each process."""
    machine_busy_s: float
    """CPU seconds the whole machine was not idle, on all cores together."""


class Meter:
    """Reads the processes named. Raises `psutil.NoSuchProcess` if one is gone.

    Linux counts CPU time in ticks of 10 ms, so readings should be seconds apart.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes: Final = {name: psutil.Process(pid) for name, pid in pids.items()}

    def read(self) -> Sample:
        """Read all of them."""
        cpu_s: dict[str, float] = {}
        rss: dict[str, int] = {}
        for name, process in self._processes.items():
            with process.oneshot():
                times = process.cpu_times()
                cpu_s[name] = times.user + times.system
                rss[name] = process.memory_info().rss
        machine = psutil.cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        # Guests' time is part of user time already.
        guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)
        busy = sum(machine) - guests - idle
        return Sample(time.monotonic(), time.time_ns() // 1_000_000, cpu_s, rss, busy)
