"""A child process of the demo: it writes to a log, and never outlives the demo."""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

import anyio
import anyio.abc

import worker
from worker.errors import TurnbusError

_TAIL_LINES: Final = 8

# The command replaces the shell, so that its pid and exit code are those of the child. A watcher
# runs beside it: when the demo dies, the pipe closes, and the watcher kills its process group,
# which contains the command. A line on the pipe ends the watcher.
_LAUNCH: Final = """
exec 3<&0 </dev/null
{ read -r _ || kill -s KILL 0; } <&3 &
exec "$@" 3<&-
"""


class Child:
    """One running `turnbus` command; `start` creates one.

    It runs in its own process session, so that Ctrl-C reaches the demo only.
    """

    def __init__(self, name: str, process: anyio.abc.Process, log: Path) -> None:
        self.name = name
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
        module: str = "worker",
        printed: Path | None = None,
    ) -> AsyncIterator[Self]:
        """Run `turnbus COMMAND` until the block ends, then kill it.

        `module` replaces `worker` in `python -m worker COMMAND`. Standard output goes to
        `printed`, or to the log if that is None.
        """
        watched, leash = os.pipe()
        errors = _create(log)
        output = os.dup(errors) if printed is None else _create(printed)
        try:
            process = await anyio.open_process(
                ["/bin/sh", "-c", _LAUNCH, name, sys.executable, "-m", module, *command],
                stdin=watched,
                stdout=output,
                stderr=errors,
                # `-m` searches the working directory first: it must find this package.
                cwd=Path(worker.__file__).parent.parent,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            os.close(leash)
            raise
        finally:
            os.close(watched)
            os.close(output)
            os.close(errors)
        child = cls(name, process, log)
        try:
            yield child
        finally:
            with anyio.CancelScope(shield=True):
                child.kill()
                await process.wait()
            # The pipe is broken if the watcher was killed with its group.
            with contextlib.suppress(BrokenPipeError):
                os.write(leash, b"go\n")
            os.close(leash)

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process.returncode is None

    def kill(self) -> None:
        """End the process with SIGKILL, as in a crash."""
        self._stop_requested = True
        if self.running:
            self._process.kill()

    async def stop(self, patience_s: float) -> None:
        """End the process with SIGTERM, as an operator would; wait up to `patience_s` seconds."""
        self._stop_requested = True
        if self.running:
            self._process.terminate()
            with anyio.move_on_after(patience_s):
                await self._process.wait()

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


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
