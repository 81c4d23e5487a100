"""Measures the machine, the processes of a benchmark, and the delays of its worker."""

import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import anyio.to_thread
import msgspec
import psutil
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from worker import build
from worker.errors import TurnbusError
from worker.telemetry.counters import BOUNDS_S, Histogram

SENT: Final = "turnbus_chunk_lag_seconds"
APPENDED: Final = "turnbus_commit_duration_seconds"

_PACKAGES = ("turnbus", "redis", "hiredis", "websockets", "msgspec", "anyio", "uvloop")


class Machine(msgspec.Struct, frozen=True):
    """State of the machine before the run."""

    cpu: str
    cores: int
    load: tuple[float, float, float]
    """Load averages of 1, 5 and 15 minutes."""
    system: str

    @classmethod
    def here(cls) -> "Machine":
        """Return a description of this machine."""
        load = os.getloadavg()
        return cls(
            cpu=_cpu(),
            cores=os.cpu_count() or 1,
            load=(round(load[0], 2), round(load[1], 2), round(load[2], 2)),
            system=f"{platform.system()} {platform.release()}",
        )


def _cpu() -> str:
    """Return the CPU model, or the architecture if the model is unknown."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Return the versions of Python and the packages; None for a package not installed.

    `build` is the form of the worker's core.
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found | {"build": build.form()}


async def server_version(redis: Redis) -> str:
    """Return name and version of the Redis server."""
    about: Any = await redis.info("server")
    # Valkey reports redis_version 7.2.4 for compatibility.
    if "valkey_version" in about:
        return f"valkey {about['valkey_version']}"
    return f"redis {about['redis_version']}"


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

    def since(self, earlier: "Sample") -> "Usage":
        """Return the CPU use since an earlier reading."""
        cpu_s = {name: used - earlier.cpu_s[name] for name, used in self.cpu_s.items()}
        return Usage(self.at - earlier.at, cpu_s, self.machine_busy_s - earlier.machine_busy_s)


class Usage(NamedTuple):
    """CPU seconds used between two readings."""

    seconds: float
    cpu_s: dict[str, float]
    machine_busy_s: float

    @property
    def shares(self) -> dict[str, float]:
        """Share of one core, by process."""
        return {name: used / self.seconds for name, used in self.cpu_s.items()}

    @property
    def others_s(self) -> float:
        """CPU seconds of programs outside the benchmark."""
        return max(0.0, self.machine_busy_s - sum(self.cpu_s.values()))


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


class WorkerLatency(msgspec.Struct, frozen=True):
    """Milliseconds by quantile, each the upper bound of its histogram bucket."""

    p50: float = 0.0
    p99: float = 0.0


class WorkerLatencies(msgspec.Struct, frozen=True):
    """Delays of the worker alone, from its metrics.

    The latency at the consumer includes the STT server and its socket; these are the parts before
    and after.
    """

    sent: WorkerLatency = WorkerLatency()
    """Delay from the append of a chunk until it is sent to the provider."""
    appended: WorkerLatency = WorkerLatency()
    """Delay from the creation of an event, on a provider message, to its append."""


class HistogramReading:
    """Histograms of a worker's metrics at one time."""

    def __init__(self, text: str) -> None:
        """Parse metrics in the Prometheus text format."""
        self._cumulative = {
            family.name: [int(s.value) for s in family.samples if s.name.endswith("_bucket")]
            for family in text_string_to_metric_families(text)
            if family.name in (SENT, APPENDED)
        }

    def until(self, later: "HistogramReading") -> WorkerLatencies:
        """Return the delays counted between this reading and a later one."""
        return WorkerLatencies(self._delay(SENT, later), self._delay(APPENDED, later))

    def _delay(self, name: str, later: "HistogramReading") -> WorkerLatency:
        readings = zip(self._cumulative[name], later._cumulative[name], strict=True)
        cumulative = [after - before for before, after in readings]
        window = Histogram(BOUNDS_S)
        window.counts = [after - before for before, after in pairwise([0, *cumulative])]
        return WorkerLatency(window.quantile(0.5) * 1000, window.quantile(0.99) * 1000)


async def read_histograms(port: int) -> HistogramReading:
    """Read the metrics of the worker on this machine. Raises TurnbusError if that fails."""

    def get() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10.0) as answer:
            text: str = answer.read().decode()
            return text

    try:
        return HistogramReading(await anyio.to_thread.run_sync(get))
    except (URLError, OSError) as error:
        raise TurnbusError(f"cannot read the worker's metrics: {error}") from error
