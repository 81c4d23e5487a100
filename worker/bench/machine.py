"""Machine and package versions of a benchmark."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis

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
    """Return the versions of Python and the packages; None for a package not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


async def server_version(redis: Redis) -> str:
    """Return name and version of the Redis server."""
    about: Any = await redis.info("server")
    # Valkey reports redis_version 7.2.4 for compatibility.
    if "valkey_version" in about:
        return f"valkey {about['valkey_version']}"
    return f"redis {about['redis_version']}"
