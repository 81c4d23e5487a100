"""`turnbus dev` as a process."""

import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import Process

from tests.support.polling import eventually


class Dev:
    """A running `turnbus dev`."""

    def __init__(self, process: Process, out: Path, errors: Path) -> None:
        self.process = process
        self._out = out
        self._errors = errors

    @property
    def output(self) -> str:
        """Standard output so far."""
        return self._out.read_text("utf-8")

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return self._errors.read_text("utf-8")

    @property
    def address(self) -> str:
        """Host and port of the gateway."""
        found = re.search(r"http://(127\.0\.0\.1:\d+)/$", self.output, re.MULTILINE)
        assert found is not None
        return found[1]

    @property
    def variables(self) -> dict[str, str]:
        """The printed variables."""
        (line,) = re.findall(r"^ *export (.+)$", self.output, re.MULTILINE)
        return dict(pair.split("=", 1) for pair in line.split())

    async def started(self) -> None:
        """Wait until all parts run."""
        await eventually(
            lambda: "Turns:" in self.output or self.process.returncode is not None, "turnbus dev"
        )
        assert "Turns:" in self.output, self.errors

    async def page(self, path: str) -> tuple[int, str, bytes]:
        """Return the status, the head and the body of a file."""
        host, port = self.address.split(":")
        received = b""
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await stream.send(f"GET {path} HTTP/1.1\r\nHost: {self.address}\r\n\r\n".encode())
            async for part in stream:
                received += part
        head, _, body = received.partition(b"\r\n\r\n")
        return int(head.split()[1]), head.decode(), body


@asynccontextmanager
async def running(tmp_path: Path, *arguments: str, engine: str = "script") -> AsyncIterator[Dev]:
    """Run `turnbus dev`, and kill it if it still runs at the end.

    Its files are in `temporary` below the path.
    """
    command = [sys.executable, "-m", "worker", "dev", "--engine", engine, *arguments]
    # A user's real settings must not reach it.
    env = {
        **os.environ,
        "TMPDIR": str(tmp_path / "temporary"),
        "TURNBUS_REDIS_URL": "redis://nowhere",
        "TURNBUS_INGEST_LISTEN": "0.0.0.0:1",
        "TURNBUS_PREFIX": "another",
    }
    out, errors = tmp_path / "out", tmp_path / "errors"
    with out.open("wb") as stdout, errors.open("wb") as stderr:
        process = await anyio.open_process(command, env=env, stdout=stdout, stderr=stderr)
    async with process:
        try:
            yield Dev(process, out, errors)
        finally:
            if process.returncode is None:
                process.kill()
