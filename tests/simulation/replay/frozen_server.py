"""A real server whose clock a test sets, and which can lose the last writes of its log."""

import mmap
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from tests.simulation.redis.differential.comparison import RealServer
from tests.simulation.redis.resp import Reply
from worker.local.redis import EmbeddedRedis

_CONFIG = {"appendfsync": "no", "auto-aof-rewrite-percentage": "0"}
_LOG = Path("appendonlydir", "appendonly.aof.1.incr.aof")


class ClockNotFrozenError(Exception):
    """The server's clock cannot be controlled here."""


class FrozenServer:
    """One server, on which one command at a time runs at a given time."""

    def __init__(self, portal: BlockingPortal, embedded: EmbeddedRedis, clock: mmap.mmap) -> None:
        self._portal = portal
        self._embedded = embedded
        self._clock = clock
        self._connection = RealServer(embedded.port)

    @classmethod
    @contextmanager
    def start(cls, binary: Path, now_us: int) -> Iterator[Self]:
        """Run a server until the context ends. Raises `ClockNotFrozenError`."""
        with TemporaryDirectory() as directory:
            page = Path(directory, "clock")
            page.write_bytes(now_us.to_bytes(8, sys.byteorder))
            launcher = _create_launcher(Path(directory), binary, page)
            embedded = EmbeddedRedis.start(append_only=True, config=_CONFIG, binary=launcher)
            with (
                page.open("r+b") as file,
                mmap.mmap(file.fileno(), 8) as clock,
                start_blocking_portal("asyncio") as portal,
                portal.wrap_async_context_manager(embedded) as running,
            ):
                server = cls(portal, running, clock)
                try:
                    server._check()
                    yield server
                finally:
                    server._connection.close()

    def set_time(self, now_us: int) -> None:
        """Set the clock to a Unix time. It stands still until the next call."""
        self._clock[:] = now_us.to_bytes(8, sys.byteorder)

    def run(self, *args: bytes) -> Reply:
        """Run a command."""
        return self._connection.run([*args])

    @property
    def log_size(self) -> int:
        """Size of the append-only file, which has every write whose reply was received."""
        return (self._embedded.directory / _LOG).stat().st_size

    def restart(self, log_size: int) -> None:
        """Kill the server, cut its append-only file to this size, and start it again."""
        self._connection.close()
        self._portal.call(self._embedded.kill)
        with (self._embedded.directory / _LOG).open("r+b") as log:
            log.truncate(log_size)
        self._portal.call(self._embedded.restart)
        self._connection = RealServer(self._embedded.port)

    def _check(self) -> None:
        about = self.run(b"INFO", b"server")
        if not isinstance(about, bytes) or b"monotonic_clock:POSIX" not in about:
            raise ClockNotFrozenError("the server reads the clock of the processor")


def _create_launcher(directory: Path, binary: Path, page: Path) -> Path:
    """Return a program that runs the server with the clock of a file."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        raise ClockNotFrozenError("this needs Linux and a C compiler")
    library, source = directory / "frozen_clock.so", Path(__file__).with_name("frozen_clock.c")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    launcher = directory / "server"
    preload, clock, program = (shlex.quote(str(each)) for each in (library, page, binary))
    launcher.write_text(
        f'#!/bin/sh\nLD_PRELOAD={preload} FROZEN_CLOCK={clock} exec {program} "$@"\n'
    )
    launcher.chmod(0o700)
    return launcher
