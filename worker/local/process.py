"""Child processes that end with this process."""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

import anyio
import anyio.abc

import worker
from worker.errors import TurnbusError

WORKER_MODULE: Final = "worker"
"""Module of the `turnbus` command."""

_TAIL_LINES: Final = 8

# The command replaces the shell, so that its pid and exit code are those of the child. A watcher
# runs beside it: when the parent dies, the pipe closes, and the watcher removes the directory and
# kills its process group, which contains the command. A line on the pipe ends the watcher instead.
_LAUNCH: Final = """
directory=$1
shift
exec 3<&0 </dev/null
{ read -r _ || { [ -z "$directory" ] || rm -rf "$directory"; kill -s KILL 0; }; } <&3 &
exec "$@" 3<&-
"""


class Leash:
    """Pipe to the watcher of a child process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """End the watcher, after the process has ended."""
        # The pipe is broken if the watcher was killed with its group.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._descriptor, b"go\n")
        os.close(self._descriptor)


async def spawn(
    command: Sequence[str],
    *,
    stdout: int,
    stderr: int,
    directory: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[anyio.abc.Process, Leash]:
    """Start a process in its own session; it ends with this process.

    Ctrl-C reaches this process only. `directory` is removed if this process dies. The other
    arguments are those of `anyio.open_process`.
    """
    watched, leash = os.pipe()
    try:
        process = await anyio.open_process(
            ["/bin/sh", "-c", _LAUNCH, "turnbus", str(directory or ""), *command],
            stdin=watched,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
    except BaseException:
        os.close(leash)
        raise
    finally:
        os.close(watched)
    return process, Leash(leash)


class ChildProcess:
    """One running `turnbus` command; `start` creates one.

    It runs in its own process session, so that Ctrl-C reaches the parent only. It ends with the
    parent.
    """

    def __init__(self, name: str, process: anyio.abc.Process, log: Path) -> None:
        self.name: Final = name
        self.pid: Final = process.pid
        self._process = process
        self._log = log
        self._stop_requested = False

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        name: str,
        command: list[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        module: str = WORKER_MODULE,
        stdout: Path | None = None,
    ) -> AsyncIterator[Self]:
        """Run `turnbus COMMAND` until the block ends, then kill it.

        `module` replaces `worker` in `python -m worker COMMAND`. Standard output goes to
        `stdout`, or to the log if that is None.
        """
        errors = create_file(log)
        output = os.dup(errors) if stdout is None else create_file(stdout)
        try:
            process, leash = await spawn(
                [sys.executable, "-m", module, *command],
                stdout=output,
                stderr=errors,
                # `-m` searches the working directory first: it must find this package.
                cwd=Path(worker.__file__).parent.parent,
                env=environment,
            )
        finally:
            os.close(output)
            os.close(errors)
        child = cls(name, process, log)
        try:
            yield child
        finally:
            with anyio.CancelScope(shield=True):
                child.kill()
                await process.wait()
            leash.release()

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process.returncode is None

    def kill(self) -> None:
        """End the process with SIGKILL, as in a crash."""
        self._stop_requested = True
        if self.running:
            self._process.kill()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        if self.running:
            self._process.send_signal(number)

    async def stop(self, timeout_s: float) -> None:
        """End the process with SIGTERM, as an operator would; wait up to `timeout_s` seconds."""
        self._stop_requested = True
        self.signal(signal.SIGTERM)
        with anyio.move_on_after(timeout_s):
            await self.wait()

    async def wait(self) -> int:
        """Wait until the process ends; return the exit code, negative for a signal."""
        return await self._process.wait()

    def text(self) -> str:
        """Return the log so far."""
        return self._log.read_text("utf-8", "replace")

    def tail(self) -> str:
        """Return the last lines of the log, indented."""
        lines = self.text().splitlines()[-_TAIL_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (nothing)"

    async def guard(self) -> None:
        """Wait until the process ends; raise TurnbusError unless `kill` or `stop` was called."""
        code = await self._process.wait()
        if not self._stop_requested:
            if not shutil.disk_usage(self._log.parent).free:
                raise TurnbusError(
                    f"{self.name} stopped: the disk of {self._log.parent} is full; "
                    "make room, or set TMPDIR to another directory"
                )
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            raise TurnbusError(
                f"{self.name} stopped by itself ({how}); it last wrote:\n{self.tail()}"
            )


def create_file(path: Path) -> int:
    """Create an empty file that only this user can read; return its descriptor."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
